"""Build recipes in every format, measure them on devices, and report which is best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from harness import config, pipeline, progress, store
from harness.commands import _options
from harness.core.errors import UsageError
from harness.core.places import cache_dir
from harness.core.types import Plan, Run
from harness.store import RunFolder

#: Outcomes that say something about the model; any other says that building or measuring failed.
ANSWERS = {
    "measured",
    "unsupported_op",
    "wrong_output",
    "export_failed",
    "load_failed",
    "out_of_memory",
    "runtime_missing",
}
QUICK = Plan(blocks=3, min_time_s=0.1, min_iterations=10, warmup_time_s=0.05, memory_blocks=1, quick=True)


@click.command()
@click.argument("files", nargs=-1, type=_options.PATH)
@_options.devices
@_options.everything
@_options.fleet
@_options.models
@_options.recipes
@_options.formats
@click.option(
    "--threads", type=click.IntRange(1, 1024), multiple=True, default=(1,), show_default=True, metavar="N"
)
@_options.seeds
@click.option("--inputs", type=_options.PATH, help="Inputs for FILES: an .npz with one array per input.")
@click.option("--blocks", type=click.IntRange(min=1), help="Fresh processes per cell.  [default: 6]")
@click.option("--min-time", type=click.FloatRange(min=0.001), help="Seconds timed per block.  [default: 0.5]")
@click.option("--min-iterations", type=click.IntRange(min=1), help="Inferences per block.  [default: 30]")
@click.option(
    "--timeout", type=click.FloatRange(min=1), help="Seconds until a block is ended.  [default: 120]"
)
@click.option("--quick", is_flag=True, help="A fast look: 3 short blocks; every record says so.")
@_options.results
@click.option("--run", "name", metavar="NAME", help="The run's name.  [default: time and model]")
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, with the choices it had.")
@click.option(
    "--wait-for-device",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for a device that somebody else uses.  [default: 0]",
)
@_options.cache
@_options.as_json
def command(
    *,
    files: tuple[Path, ...],
    devices: tuple[str, ...],
    everything: bool,
    fleet: Path | None,
    models: tuple[str, ...],
    recipes: tuple[str, ...],
    formats: tuple[str, ...],
    threads: tuple[int, ...],
    seeds: int,
    inputs: Path | None,
    blocks: int | None,
    min_time: float | None,
    min_iterations: int | None,
    timeout: float | None,
    quick: bool,
    results: Path,
    name: str | None,
    resume: str | None,
    wait_s: float,
    cache: Path | None,
    as_json: bool,
) -> int:
    """
    Build, measure and compare.

    Give models (with --recipe and --format), or FILES (.onnx, .tflite, .pte) that were made elsewhere.
    Everything is stored under OUT/RUN as it is measured: Ctrl-C loses nothing, and --resume goes on.
    """
    cache = cache.absolute() if cache else cache_dir()
    with progress.reporter() as show:
        if resume:
            _refuse_choices()
            folder = store.find(results, resume)
            with _how_to_go_on(folder.path):
                pipeline.resume(folder, config.load_devices(fleet), cache, show, wait_s=wait_s)
        else:
            request = pipeline.Request(
                models=models,
                recipes=recipes,
                formats=_options.format_names(formats),
                threads=tuple(dict.fromkeys(threads)),
                seeds=tuple(range(seeds)),
                files=tuple(map(str, files)),
                inputs=str(inputs) if inputs else None,
                plan=_plan(quick, blocks, min_time, min_iterations, timeout),
            )
            chosen = _options.chosen_devices(fleet, devices, everything=everything)
            name = name or store.default_name([Path(source).stem for source in (*models, *request.files)])
            with _how_to_go_on(results / name):
                folder = pipeline.bench(
                    request, chosen, results=results, name=name, cache=cache, show=show, wait_s=wait_s
                )
    return _finish(folder, as_json=as_json)


def _plan(
    quick: bool,
    blocks: int | None,
    min_time_s: float | None,
    min_iterations: int | None,
    timeout_s: float | None,
) -> Plan:
    plan = QUICK if quick else Plan()
    if blocks is not None:
        plan = replace(plan, blocks=blocks)
    if min_time_s is not None:
        plan = replace(plan, min_time_s=min_time_s)
    if min_iterations is not None:
        plan = replace(plan, min_iterations=min_iterations)
    if timeout_s is not None:
        plan = replace(plan, timeout_s=timeout_s)
    return plan


@contextmanager
def _how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if (folder / store.RUN_FILE).exists():
            where = "" if folder.parent == Path("results") else f" --out {folder.parent}"
            how = f"edgebench bench --resume {folder.name}{where}"
            click.echo(f"What was measured is kept. Go on with: {how}", err=True)
        raise


def _refuse_choices() -> None:
    """A run goes on with the choices that it had: another one given beside --resume is a mistake."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name not in {"resume", "results", "fleet", "cache", "as_json", "wait_s"}:
            raise UsageError(
                f"{parameter.opts[-1]} does not go with --resume: the run has its choices.",
                hint="Leave it out, or start a new run.",
            )


def _finish(folder: RunFolder, *, as_json: bool) -> int:
    """Write the report, print the results; 0 if every cell has an answer, 3 if none was measured, else 2."""
    run = folder.read()
    page = folder.path / "report.html"
    store.write_atomically(page, _options.rendered(run, "html"))
    click.echo(_options.rendered(run, "json" if as_json else "table"))
    if not as_json:
        click.echo(f"Report: {page}")
    return exit_code(run)


def exit_code(run: Run) -> int:
    """0 if every cell has an answer, 2 if building or measuring failed for some, 3 if none was measured."""
    outcomes = [record.status for record in run.records]
    if "measured" not in outcomes:
        return 3
    return 0 if set(outcomes) <= ANSWERS else 2
