"""List passes, formats, models, recipes, transports, meters or reports, one line each."""

from __future__ import annotations

import json

import click

from harness import config
from harness.commands import _options
from harness.core import plugins
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
@_options.as_json
def command(*, kind: str, as_json: bool) -> None:
    """Say what there is of one KIND."""
    rows = _recipes() if kind == "recipes" else _plugins(PACKAGES[kind])
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        width = max(map(len, rows))
        for name, summary in rows.items():
            click.echo(f"{name:{width}}  {summary}")
    else:
        click.echo(f"There are no {kind} in this version.", err=True)


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
