"""List the fleet and whether each device answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from harness import config
from harness.commands import _options
from harness.core.errors import EdgebenchError
from harness.core.types import FORMATS, Device
from harness.session import look


@click.command()
@_options.fleet
@_options.as_json
def command(*, fleet: Path | None, as_json: bool) -> int:
    """Ask every device who it is and which runtimes it has."""
    devices = list(config.load_devices(fleet).values())
    with ThreadPoolExecutor(max_workers=min(16, len(devices))) as pool:
        answers = list(pool.map(_ask, devices))
    if as_json:
        click.echo(json.dumps(answers, indent=1))
    else:
        _print(answers)
    return 0 if all(answer["answers"] for answer in answers) else 2


def _ask(device: Device) -> dict[str, Any]:
    row: dict[str, Any] = {"device": device.name, "transport": device.transport, "tags": list(device.tags)}
    try:
        with look(device) as session:
            runtimes = {}
            for name in FORMATS:
                try:
                    runtime = session.runtime(name)
                    runtimes[name] = f"{runtime.name} {runtime.version} ({runtime.engine})"
                except EdgebenchError as error:
                    runtimes[name] = f"no: {error}"
            return row | {"answers": True, "facts": dict(session.facts), "runtimes": runtimes}
    except EdgebenchError as error:
        return row | {"answers": False, "reason": str(error)}


def _print(answers: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("device", "transport", "answers", "what it is", "runtimes"):
        table.add_column(title)
    for row in answers:
        if row["answers"]:
            runtimes = "\n".join(f"{name}: {text}" for name, text in row["runtimes"].items())
            table.add_row(row["device"], row["transport"], "yes", _what(row["facts"]), runtimes)
        else:
            table.add_row(row["device"], row["transport"], "no", row["reason"], "")
    _options.stdout().print(table)


def _what(facts: Mapping[str, Any]) -> str:
    parts = [str(facts.get(key)) for key in ("model", "cpu_model", "os", "kernel") if facts.get(key)]
    return "\n".join(parts)
