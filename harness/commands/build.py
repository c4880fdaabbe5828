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
from harness.core.types import Artifact, Failure, LayerChange, Score, StepReport

_STEP_FIGURES = ("score", "F1", "recall", "parameters", "zeros", "MACs", "bytes", "took", "memory")
#: Layers of a step that are shown in the table.
_MOST_LAYERS = 12


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
        made = [file for file in files.values() if isinstance(file, Artifact) and file.steps]
        if made:
            click.echo(f"\n{Path(model).stem} {recipe}, step by step:")
            _options.stdout().print(_steps(made[0].steps))
    for (model, recipe), files in built.items():
        for name, file in files.items():
            place = file.path if isinstance(file, Artifact) else f"{file.status}: {file.reason}"
            click.echo(f"{Path(model).stem} {recipe} {name}: {place}")
            if isinstance(file, Artifact) and (told := _container(file)):
                click.echo(f"{Path(model).stem} {recipe} {name}: {told}")


def _container(file: Artifact) -> str | None:
    """What the file is as a download; None: its recipe asks for no container."""
    packed = file.container
    if packed is None:
        return file.container_reason
    others = f"gzip -9 {units.size(file.gzip_bytes)}, xz {units.size(packed.xz_bytes)}"
    return f"{packed.path} ({packed.bytes:,} bytes, {file.bytes / packed.bytes:.1f}x smaller; {others})"


def _steps(steps: tuple[StepReport, ...]) -> Table:
    """What each step did to the model; formats of one recipe share their steps."""
    table = Table(box=None, header_style="bold")
    for title in ("step", *_STEP_FIGURES, "note"):
        left = title in {"step", "note"}
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    for step in steps:
        table.add_row(
            step.name,
            "-" if step.score is None else f"{step.score:.4f}",
            *(f"{step.metrics[name]:.4f}" if name in step.metrics else "-" for name in ("f1", "recall")),
            f"{step.parameters:,}",
            "-" if step.sparsity is None else units.percent(step.sparsity),
            units.count(step.macs),
            "-" if step.bytes is None else units.size(step.bytes),
            f"{step.wall_s:.1f} s" + (" (cached)" if step.cached else ""),
            "-" if step.peak_memory_bytes is None else units.size(step.peak_memory_bytes),
            step.note,
        )
        for layer in step.layers[:_MOST_LAYERS] if step.name != "train" else ():
            table.add_row(f"  {layer.name}", *[""] * (len(_STEP_FIGURES)), _layer(layer))
        if len(step.layers) > _MOST_LAYERS:
            table.add_row("  ...", *[""] * (len(_STEP_FIGURES)), f"{len(step.layers)} layers; all: --json")
    return table


def _layer(layer: LayerChange) -> str:
    """What became of a layer, in a line."""
    shapes = [
        "x".join(map(str, shape)) for shape in (layer.shape_before, layer.shape_after) if shape is not None
    ]
    parts = [layer.kind, " -> ".join(dict.fromkeys(shapes))]
    parts.append(f"{layer.nonzeros:,} of {layer.parameters:,} not zero")
    if layer.sqnr_db is not None:
        parts.append(f"{layer.sqnr_db:.0f} dB")
    return ", ".join(filter(None, parts))


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
