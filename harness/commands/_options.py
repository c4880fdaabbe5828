"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.core import plugins
from harness.core.types import FORMATS, FormatName, Run

PATH = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

fleet: Decorator = click.option(
    "--fleet", type=PATH, help="The file that names the devices.  [default: devices.yaml, if there is one]"
)
devices: Decorator = click.option(
    "--device",
    "devices",
    multiple=True,
    default=("local",),
    show_default=True,
    metavar="NAME",
    help="A device, a glob or a tag; may be given again.",
)
models: Decorator = click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|FILE.py",
    help="A shipped task (edgebench list models) or your own task file; may be given again.",
)
recipes: Decorator = click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=("fp32",),
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="A shipped recipe (edgebench list recipes) or your own; may be given again.",
)
formats: Decorator = click.option(
    "--format", "formats", multiple=True, metavar="NAME", help="may be given again.  [default: all three]"
)
seeds: Decorator = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train and compress with this many seeds; scores are then mean ± sd. The first one is timed.",
)
results: Decorator = click.option(
    "--out", "results", type=PATH, default=Path("results"), show_default=True, help="The folder of all runs."
)
cache: Decorator = click.option(
    "--cache", type=PATH, help="Trained models and files.  [default: ~/.cache/edgebench]"
)
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def format_names(names: Sequence[str]) -> tuple[FormatName, ...]:
    """Checked format names, each once; all of them when none is given."""
    known: dict[str, FormatName] = {name: name for name in FORMATS}
    for name in names:
        if name not in known:
            raise plugins.unknown("format", name, known)
    return tuple(known[name] for name in dict.fromkeys(names or known))


def stdout() -> Console:
    """Standard output for tables: as wide as the terminal, or wide enough where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=160, highlight=False)


def rendered(run: Run, report: str) -> str:
    """*run* as a report's text; a table on a terminal is as wide as that and has colours."""
    render = plugins.load("harness.reports", report).render
    console = Console()
    if report == "table" and console.is_terminal:
        return str(render(run, width=console.width, color=True))
    return str(render(run))
