"""Build records as a real run leaves them, from a fixed seed, for tests of everything that reads records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from harness.core.codec import SCHEMA
from harness.core.types import (
    BACKENDS,
    RUNTIMES,
    SUFFIXES,
    Artifact,
    Block,
    Cell,
    FormatName,
    MemoryMark,
    Parity,
    Plan,
    Recipe,
    Record,
    Run,
    RunInfo,
    Runtime,
    Score,
    Setting,
    Status,
    Step,
    StepReport,
    TensorSpec,
    digest,
)

NO_LOWERING = "aten.erfinv has no lowering in this exporter"
START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
MIB = 2**20
FORMATS: tuple[FormatName, ...] = ("executorch", "onnx", "tflite")
VERSIONS = {"executorch": "1.5.1", "onnx": "1.31.1", "tflite": "2.3.0"}
DEVICE_FACTS: Mapping[str, Any] = {
    "arch": "x86_64",
    "cores": 2,
    "cpu_model": "AMD EPYC 7B13",
    "cpus_allowed": 2,
    "governors": None,
    "isa": ["avx2", "f16c", "fma", "sse4_2"],
    "kernel": "6.1.0-18-amd64",
    "libc": "glibc 2.36",
    "memory_total_bytes": 25_281_167_360,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "page_bytes": 4096,
    "python": "3.11.9",
    "reasons": {"governors": "no cpufreq"},
    "runtimes": {"executorch": "1.5.1", "litert": "2.3.0", "onnxruntime": "1.31.1"},
}
HOST_FACTS: Mapping[str, Any] = {
    "edgebench": "0.1.0",
    "packages": {"executorch": "1.5.1", "onnx": "1.23.2", "torch": "2.13.0"},
    "python": "3.11.9",
    "system": "Linux-6.1.0-18-amd64-x86_64-with-glibc2.36",
}

#: recipe -> (steps, p50 in µs with one thread per format, bytes per format, of 450 right)
_RECIPES: Mapping[str, tuple[tuple[Step, ...], tuple[float, ...], tuple[int, ...], int]] = {
    "fp32": ((), (142.0, 118.0, 131.0), (378_112, 375_301, 376_440), 446),
    "int8": ((Step(name="quantize"),), (61.0, 74.0, 52.0), (104_448, 108_904, 107_120), 445),
    "pruned": ((Step(name="prune"),), (60.0, 51.5, 57.0), (92_032, 90_417, 91_320), 444),
    "pruned_int8": (
        (Step(name="prune"), Step(name="quantize")),
        (31.0, 36.5, 24.8),
        (31_104, 35_240, 30_912),
        443,
    ),
}


def cell(
    recipe: str = "fp32",
    format: FormatName = "onnx",
    *,
    device: str = "local",
    model: str = "digits_cnn",
    threads: int = 1,
    backend: str | None = None,
) -> Cell:
    return Cell(
        device=device,
        model=model,
        recipe=recipe,
        format=format,
        threads=threads,
        backend=backend or BACKENDS[format],
    )


def latency_block(
    values_ns: Sequence[int], *, index: int = 0, started: datetime = START, threads: int = 1, **changes: Any
) -> Block:
    wall = sum(values_ns)
    block = Block(
        kind="latency",
        index=index,
        started_utc=started.isoformat(),
        load_ns=4_000_000 + 10_000 * index,
        first_inference_ns=900_000 + 1_000 * index,
        warmup_ns=tuple(int(v * 1.4) for v in values_ns[:5]),
        values_ns=tuple(values_ns),
        cpu_ns=int(wall * threads * 0.98),
        wall_ns=wall,
        settings={"threads": Setting(requested=threads, observed=threads)},
        facts={
            "check": {"sqnr_db": 141.2 - index, "max_abs": 1.2e-6, "sets": 4},
            "oom_kills": 0,
            "state_before": state(0.3 + 0.1 * index),
            "state_after": state(0.4 + 0.1 * index, clock_s=1.0, others_s=0.1),
        },
    )
    return replace(block, **changes)


def state(load: float, *, clock_s: float = 0.0, others_s: float = 0.0) -> dict[str, Any]:
    """A state fact: this process was busy all the time, others for *others_s* CPU seconds."""
    return {
        "load_average_1min": load,
        "clock_s": 100.0 + clock_s,
        "cpu_s": clock_s,
        "all_cpu_s": 5000.0 + clock_s + others_s,
        "swap_bytes": 0,
        "temperatures_c": None,
        "temperatures_c_reason": "no /sys/class/thermal/thermal_zone*/temp",
        "frequencies_hz": {"policy0": 2_400_000_000, "policy1": 2_100_000_000},
    }


def memory_block(
    *, index: int = 0, baseline: int = 46 * MIB, model: int = 9 * MIB, swap: int = 0, **changes: Any
) -> Block:
    def mark(name: str, rss: int, peak: int) -> MemoryMark:
        return MemoryMark(
            name=name,
            peak_rss_bytes=peak,
            rss_bytes=rss,
            anon_bytes=rss * 3 // 5,
            file_bytes=rss - rss * 3 // 5,
            swap_bytes=swap,
        )

    block = Block(
        kind="memory",
        index=index,
        started_utc=(START + timedelta(minutes=10, seconds=index)).isoformat(),
        load_ns=4_100_000,
        first_inference_ns=910_000,
        marks=(
            mark("baseline", baseline, baseline + MIB),
            mark("loaded", baseline + model // 2, baseline + model * 2 // 3),
            mark("first_inference", baseline + model * 3 // 4, baseline + model * 4 // 5),
            mark("steady", baseline + model * 3 // 4, baseline + model),
        ),
        settings={"threads": Setting(requested=1, observed=1)},
    )
    return replace(block, **changes)


def artifact(
    recipe: str = "fp32",
    format: FormatName = "onnx",
    *,
    steps: Sequence[Step] = (),
    size: int = 375_301,
    model: str = "digits_cnn",
    scores: Sequence[float] = (0.9911, 0.9889, 0.9933),
    **changes: Any,
) -> Artifact:
    kept = 0.25 if "pruned" in recipe else 1.0
    made = Artifact(
        path=f"cache/{recipe}{SUFFIXES[format]}",
        format=format,
        sha256=digest([model, recipe, format]),
        bytes=size,
        gzip_bytes=int(size * 0.91),
        model=model,
        recipe=recipe,
        seed=0,
        model_digest=digest(model),
        recipe_digest=Recipe(name=recipe, steps=tuple(steps)).digest,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 1, 28, 28)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 10)),),
        check_path="cache/check.ebt",
        check_sets=4,
        check_min_sqnr_db=30.0,
        exporter={"torch": "2.13.0", RUNTIMES[format]: VERSIONS[format]},
        parameters=int(93_322 * kept),
        nonzeros=int(93_322 * kept),
        macs=int(4_241_152 * kept),
        parity=Parity(max_abs=2.1e-6, cosine=1.0, sqnr_db=131.5, top1_agreement=1.0, samples=64),
        score=Score(metric="accuracy", values=tuple(scores), seeds=tuple(range(len(scores))), samples=450),
        steps=(
            StepReport(
                name="train",
                wall_s=31.4,
                parameters=93_322,
                nonzeros=93_322,
                macs=4_241_152,
                score=0.9911,
                changed=True,
                cached=True,
            ),
            *(
                StepReport(
                    name=step.name,
                    wall_s=6.2,
                    parameters=int(93_322 * kept),
                    nonzeros=int(93_322 * kept),
                    macs=int(4_241_152 * kept),
                    score=0.9889,
                    changed=True,
                    cached=False,
                    note="75 % of the channels removed" if step.name == "prune" else "",
                )
                for step in steps
            ),
        ),
    )
    return replace(made, **changes)


def runtime(format: FormatName = "onnx", **changes: Any) -> Runtime:
    engine = Runtime(
        name=RUNTIMES[format],
        version=VERSIONS[format],
        engine="native" if format == "executorch" else "python",
    )
    return replace(engine, **changes)


def record(
    blocks: Sequence[Block] = (),
    *,
    of: Cell | None = None,
    steps: Sequence[Step] = (),
    made: Artifact | None = None,
    **changes: Any,
) -> Record:
    of = of or cell()
    kept = Record(
        schema=SCHEMA,
        run="demo",
        cell=of,
        status="measured",
        reason=None,
        created_utc=START.isoformat(),
        plan=Plan(),
        artifact=made or artifact(of.recipe, of.format, steps=steps, model=of.model),
        device=DEVICE_FACTS,
        host=HOST_FACTS,
        runtime=runtime(of.format),
        blocks=tuple(blocks),
    )
    return replace(kept, **changes)


def failed(of: Cell, status: Status, reason: str, **changes: Any) -> Record:
    absent: dict[str, Any] = {"artifact": None, "runtime": None, "energy_reason": reason}
    return replace(record(of=of), status=status, reason=reason, **(absent | changes))


def medians(*medians_ns: int, of: Cell | None = None, samples: int = 120, **changes: Any) -> Record:
    """A record whose block i has exactly the median medians_ns[i]."""
    blocks = [
        latency_block([median + offset for offset in _offsets(samples)], index=i)
        for i, median in enumerate(medians_ns)
    ]
    return record(blocks, of=of, **changes)


def run(records: Sequence[Record], *, cells: Sequence[Cell] | None = None, **changes: Any) -> Run:
    info = RunInfo(
        schema=SCHEMA,
        name="demo",
        created_utc=START.isoformat(),
        cells=tuple(cells if cells is not None else [r.cell for r in records]),
        plan=records[0].plan if records else Plan(),
        request={"device": ["local"], "model": ["digits_cnn"], "threads": [1]},
        host=HOST_FACTS,
    )
    return Run(info=replace(info, **changes), records=tuple(records))


def demo_run(
    *,
    threads: Sequence[int] = (1,),
    device: str = "local",
    blocks: int = 6,
    samples: int = 400,
    seed: int = 7,
    facts: Mapping[str, Any] = DEVICE_FACTS,
    speed: float = 1.0,
) -> Run:
    """Twelve cells per thread count with log-normal times, a tail, and a drift that all cells share."""
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    for count in threads:
        for recipe, (steps, p50_us, sizes, right) in _RECIPES.items():
            for format_, p50, size in zip(FORMATS, p50_us, sizes, strict=True):
                of = cell(recipe, format_, device=device, threads=count)
                median_ns = p50 * 1000 / speed / (1 + 0.55 * (count - 1))
                scores = tuple((right + d) / 450 for d in (0, -1, 1))
                made = artifact(recipe, format_, steps=steps, size=size, scores=scores)
                timed = [
                    _noisy(rng, median_ns, i, samples, threads=count, slot=len(records))
                    for i in range(blocks)
                ]
                weight = size + 2 * MIB
                sensed = [
                    memory_block(index=i, baseline=_baseline(format_, rng), model=weight + i * 4096)
                    for i in range(3)
                ]
                records.append(record([*timed, *sensed], of=of, made=made, device=facts))
    return run(records)


def partial_run() -> Run:
    """A demo run at two thread counts, 24 cells, of which one has failed and one was never reached."""
    whole = demo_run(threads=(1, 2), samples=120)
    kept = list(whole.records)
    kept[4] = failed(kept[4].cell, "unsupported_op", NO_LOWERING)
    return run(kept[:-1], cells=[r.cell for r in whole.records])


def _noisy(
    rng: np.random.Generator, median_ns: float, index: int, samples: int, *, threads: int, slot: int
) -> Block:
    drift = 1 + 0.015 * math.sin(index) + float(rng.normal(0, 0.006))
    values = median_ns * drift * np.exp(rng.normal(0, 0.04, samples))
    values[rng.random(samples) < 0.01] *= 2.5
    started = START + timedelta(seconds=30 * index + 2 * slot)
    return latency_block(
        [int(v) for v in values],
        index=index,
        started=started,
        threads=threads,
        load_ns=int(rng.normal(4.1e6, 2e5)),
        first_inference_ns=int(median_ns * rng.normal(9, 0.5)),
    )


def _baseline(format_: FormatName, rng: np.random.Generator) -> int:
    mib = {"executorch": 12, "onnx": 58, "tflite": 49}[format_]
    return int(mib * MIB + rng.integers(0, 64) * 4096)


def _offsets(samples: int) -> range:
    return range(-(samples // 2), samples - samples // 2 + 1)
