"""List passes, formats, models, recipes, transports, meters or reports, one line each."""

from __future__ import annotations

import json

import click

from harness import config, describe
from harness.commands import _options
from harness.core import codec, plugins
from harness.yaml_lines import read

PACKAGES = {
    "passes": "compressors.passes",
    "formats": "compressors.formats",
    "models": "compressors.tasks",
    "transports": "harness.transports",
    "meters": "harness.meters",
    "reports": "harness.reports",
}


@click.command()
@click.argument("kind", type=click.Choice([*PACKAGES, "recipes"]))
@click.option("--verbose", is_flag=True, help="Every option too: type, default, range, what it does.")
@_options.as_json
def command(*, kind: str, verbose: bool, as_json: bool) -> None:
    """Say what there is of one KIND."""
    rows = _recipes() if kind == "recipes" else _plugins(PACKAGES[kind])
    if verbose and kind != "recipes":
        _print_options(rows, _described(PACKAGES[kind]), as_json=as_json)
    elif as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        width = max(map(len, rows))
        for name, summary in rows.items():
            click.echo(f"{name:{width}}  {summary}")
    else:
        click.echo(f"There are no {kind} in this version.", err=True)


def _described(package: str) -> dict[str, list[describe.Option]]:
    """The options of every plugin; none for one that takes none."""
    found = {}
    for name in plugins.names(package):
        model = getattr(plugins.load(package, name), "Options", None)
        found[name] = list(describe.options(model)) if model is not None else []
    return found


def _print_options(rows: dict[str, str], found: dict[str, list[describe.Option]], *, as_json: bool) -> None:
    if as_json:
        data = {
            name: {"summary": rows[name], "options": [codec.to_json(option) for option in listed]}
            for name, listed in found.items()
        }
        click.echo(json.dumps(data, indent=1))
        return
    for name, listed in found.items():
        click.echo(f"{name}: {rows[name]}")
        for option in listed:
            default = "" if option.type == "options" else f", default {json.dumps(option.default)}"
            limits = f", {option.range}" if option.range else ""
            click.echo(f"  {option.name}: {option.type}{limits}{default}\n      {option.doc}")


def _plugins(package: str) -> dict[str, str]:
    return {name: plugins.summary(package, name) for name in plugins.names(package)}


def _recipes() -> dict[str, str]:
    """Recipe names with their comment line, or with their passes where there is none."""
    rows = {}
    for name in config.recipe_names():
        path = config.RECIPES / f"{name}.yaml"
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        steps = [next(iter(step)) for step in read(path).data.get("steps") or []]
        rows[name] = first.removeprefix("# ") if first.startswith("# ") else " → ".join(steps)
    return rows
