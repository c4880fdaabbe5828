"""Build recipes in every format, check them against the original, and say where the files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich.table import Table

from harness import building, config, progress
from harness.commands import _options
from harness.core import codec, units
from harness.core.errors import UsageError
from harness.core.places import cache_dir
from harness.core.types import Artifact, Failure, Score


@click.command()
@_options.models
@_options.recipes
@_options.formats
@_options.seeds
@_options.cache
@_options.as_json
def command(
    *,
    models: tuple[str, ...],
    recipes: tuple[str, ...],
    formats: tuple[str, ...],
    seeds: int,
    cache: Path | None,
    as_json: bool,
) -> int:
    """Train, compress and export; what was built before is taken from the cache."""
    if not models:
        raise UsageError("No model was given.", hint="Give --model NAME; see: edgebench list models")
    with progress.reporter() as show:
        built = building.build_all(
            models=models,
            recipes=[config.load_recipe(name) for name in recipes],
            formats=_options.format_names(formats),
            seeds=tuple(range(seeds)),
            cache=cache.absolute() if cache else cache_dir(),
            report=show,
        )
    if as_json:
        click.echo(json.dumps(_as_json(built), indent=1))
    else:
        _print(built)
    return 2 if any(isinstance(f, Failure) for files in built.values() for f in files.values()) else 0


def _as_json(built: Mapping[tuple[str, str], building.Built]) -> list[object]:
    return [
        {"model": Path(model).stem, "recipe": recipe, "format": name, **codec.to_json(file)}
        for (model, recipe), files in built.items()
        for name, file in files.items()
    ]


def _print(built: Mapping[tuple[str, str], building.Built]) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("model", "recipe", "format", "file", "gzip", "parameters", "MACs", "score", "parity", ""):
        table.add_column(title, justify="left" if title in {"model", "recipe", "format", ""} else "right")
    for (model, recipe), files in built.items():
        for name, file in files.items():
            table.add_row(Path(model).stem, recipe, name, *_cells(file))
    _options.stdout().print(table)
    for (model, recipe), files in built.items():
        for name, file in files.items():
            place = file.path if isinstance(file, Artifact) else f"{file.status}: {file.reason}"
            click.echo(f"{Path(model).stem} {recipe} {name}: {place}")


def _cells(file: Artifact | Failure) -> list[str]:
    if isinstance(file, Failure):
        return ["-"] * 6 + [file.status]
    return [
        units.size(file.bytes),
        units.size(file.gzip_bytes),
        "-" if file.parameters is None else f"{file.parameters:,}",
        "-" if file.macs is None else units.count(file.macs),
        _score(file.score) if file.score else f"- ({file.score_reason})",
        f"{file.parity.sqnr_db:.0f} dB" if file.parity else "-",
        "from cache" if file.cached else "",
    ]


def _score(score: Score) -> str:
    mean = sum(score.values) / len(score.values)
    if len(score.values) == 1:
        return f"{mean:.4f} (n={score.samples})"
    spread = (sum((v - mean) ** 2 for v in score.values) / (len(score.values) - 1)) ** 0.5
    return f"{mean:.4f} ± {spread:.4f} ({len(score.values)} seeds, n={score.samples})"
