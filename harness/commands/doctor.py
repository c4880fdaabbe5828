"""Examine devices: can they be reached, what are they, are they fit to measure on, what to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import config
from harness.commands import _options
from harness.core import prompting
from harness.doctor import Page, examine

COLOURS = {"ok": "green", "warn": "yellow", "bad": "bold red"}


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_options.fleet
@_options.as_json
def command(*, names: tuple[str, ...], fleet: Path | None, as_json: bool) -> int:
    """
    One page per device: what it is, what it has, what is wrong and how to mend it.

    NAME is a device, a glob or a tag. Exit code 0 if nothing is bad, else 2.
    """
    devices = config.select_devices(config.load_devices(fleet), names)
    pages = prompting.in_parallel(examine, devices)
    if as_json:
        click.echo(json.dumps([asdict(page) | {"fit": page.fit} for page in pages], indent=1))
    else:
        console = _options.stdout()
        for page in pages:
            show(page, console)
    return 0 if all(page.fit for page in pages) else 2


def show(page: Page, console: Console) -> None:
    """One page: a word and a colour per line, so that it reads as well without colours."""
    counts = {level: sum(line.level == level for line in page.lines) for level in COLOURS}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in page.lines:
        text = Text(_plain(line.text))
        if line.todo:
            text.append(f"\n→ {_plain(line.todo)}", style="bold")
        table.add_row(Text(line.level, style=COLOURS[line.level]), line.name, text)
    told = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    console.print(Text(f"{page.device} ({page.transport}): {told}", style="bold"))
    console.print(table)
    console.print()


def _plain(text: str) -> str:
    """Words of a device without what would steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
