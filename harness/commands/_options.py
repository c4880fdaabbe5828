"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from harness import config
from harness.core import plugins
from harness.core.errors import UsageError
from harness.core.types import FORMATS, Device, FormatName, Run

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
    help="A device, a glob ('pi*') or a tag; may be given again.",
)
everything: Decorator = click.option(
    "--all", "everything", is_flag=True, help="Every device that the file names, in place of --device."
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


def chosen_devices(fleet: Path | None, patterns: Sequence[str], *, everything: bool) -> list[Device]:
    """The devices of --device and --all; UsageError when nothing is meant."""
    if not everything:
        return config.select_devices(config.load_devices(fleet), patterns)
    source = click.get_current_context().get_parameter_source("devices")
    if source is not ParameterSource.DEFAULT:
        raise UsageError("--all and --device do not go together.", hint="Leave one of them out.")
    found = list(config.load_devices(fleet, this_machine=False).values())
    if not found:
        raise UsageError(
            f"{fleet or 'devices.yaml'} names no device.", hint="Leave --all out for this machine."
        )
    return found


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
