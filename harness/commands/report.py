"""Render a stored run as a table, Markdown, CSV, HTML or JSON."""

from __future__ import annotations

from pathlib import Path

import click

from harness import store
from harness.commands import _options


@click.command()
@click.argument("run")
@click.option("--to", "kind", default="table", show_default=True, metavar="NAME", help="Which rendering.")
@click.option("-o", "--output", type=_options.PATH, help="The file to write.  [default: standard output]")
@_options.results
def command(*, run: str, kind: str, output: Path | None, results: Path) -> None:
    """
    Render RUN, a run's name or its folder.

    HTML goes to the file report.html in the run's folder, unless -o names another.
    """
    folder = store.find(results, run)
    text = _options.rendered(folder.read(), kind)
    if output is None and kind == "html":
        output = folder.path / "report.html"
    if output is None:
        click.echo(text)
    else:
        store.write_atomically(output, text)
        click.echo(str(output))
