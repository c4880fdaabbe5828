"""
Does the agent add anything to what it measures? Its p50 beside that of a bare loop over the same runtime.

Everything runs interleaved: in each round every loop gets a fresh process, the agent and its counterpart
one right after the other, in turns first and second. The ratio is taken within a round; printed are the
median of the rounds and their range. A pair that other processes disturbed is run again. Three models: two of
tens of microseconds (about 30, the shape of the shipped digits_cnn, and about 90), one of milliseconds.

For LiteRT there is also its own tool, ``python -m ai_edge_litert.tools.benchmark_litert_model``. It gives
the median of the wall times of single calls, as we do, but of ``CompiledModel.run_by_name``; the agent times
``Interpreter.invoke``, the same kernels with 1 to 2 µs less Python around them. Like is compared with like:
beside the tool stands the agent with that one call exchanged (compiled_model_agent.py), whatever the model.
The agent as it is stands beside the tool too; for the smallest model that ratio tests nothing, since the
difference is that of the two calls, which bare loops over both show right below.
The tool rounds to 10 µs, a third of the small model; here it runs unchanged but for the rounding.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import agent_process, runners, session
from harness.agent_process import ENVIRONMENT
from harness.core import tensors, units
from harness.core.places import cache_dir
from harness.core.types import BACKENDS, SUFFIXES, Device, FormatName, Job

HERE = Path(__file__).resolve().parent
LIMIT = 0.03
WARMUP_S = 0.2
WAITING = 0.1  # of the time: with more of it, a pair is run again
INPUTS = {"small": (1, 1, 28, 28), "medium": (1, 1, 44, 44), "conv": (1, 3, 64, 64)}
HEADS = {"small": 576, "medium": 3136}
FORMATS: tuple[FormatName, ...] = ("onnx", "tflite", "executorch")
TOOL = "import ai_edge_litert.tools.benchmark_litert_model as tool; tool.round = lambda v, _: v; tool.main()"

Loop = Callable[[], float]  # runs one process, gives its median in ns


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands beside what."""

    model: str
    name: str
    ours: Loop
    other: Loop
    gated: bool = True


def main() -> int:
    """Build, measure, print; 0 if every ratio is within the limit."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--seconds", type=float, default=0.4, help="of timed runs per process")
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    made_by = inspect.getsource(export) + str(INPUTS)
    folder = cache_dir() / "fidelity" / hashlib.sha256(made_by.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for name in INPUTS:
        build(name, folder)
    with session.open_session(Device(name="local", transport="local")) as device:
        pairs = plan(device, folder, args.threads, args.seconds)
        figures = measure(pairs, args.rounds)
    print(
        f"a pair of clock readings takes {clock_ns():.0f} ns; {args.rounds} rounds, {args.threads} thread(s)"
    )
    good = [show(pair, values) for pair, values in zip(pairs, figures, strict=True)]
    return 0 if all(good) else 1


def build(name: str, folder: Path) -> None:
    """The model in three formats and its check file, unless they are there."""
    if (folder / f"{name}.ebt").exists():
        return
    from compressors import quiet

    with quiet.exporters():
        export(name, folder)


def export(name: str, folder: Path) -> None:
    """The model in three formats and its check file."""
    import litert_torch
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch import nn

    def conv(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3), nn.ReLU()]

    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    small = [*conv(1, 32), pool, *conv(32, 64), pool, *conv(64, 64), nn.Flatten()]
    small += [nn.Linear(HEADS.get(name, 1), 64), nn.ReLU(), nn.Linear(64, 10)]
    large = [
        *conv(3, 48),
        *(layer for _ in range(4) for layer in conv(48, 48)),
        nn.AvgPool2d(54),
        nn.Flatten(),
    ]
    model = nn.Sequential(*(small if name in HEADS else large)).eval()
    given = (torch.randn(INPUTS[name]),)
    torch.onnx.export(model, given, folder / f"{name}.onnx", dynamo=True, external_data=False)
    litert_torch.convert(model, given).export(str(folder / f"{name}.tflite"))
    edge = to_edge_transform_and_lower(torch.export.export(model, given), partitioner=[XnnpackPartitioner()])
    (folder / f"{name}.pte").write_bytes(edge.to_executorch().buffer)
    arrays = [given[0].numpy(), model(*given).detach().numpy()]
    check = [tensors.Tensor(dtype=str(a.dtype), shape=a.shape, data=a.tobytes()) for a in arrays]
    tensors.dump(folder / f"{name}.ebt", check)


def plan(device: session.Session, folder: Path, threads: int, seconds: float) -> list[Pair]:
    """Every pair of loops; those in brackets only explain, they test nothing of ours."""
    runner = native(folder)
    times = [str(threads), str(WARMUP_S), str(seconds)]
    compiled_model = str(HERE / "compiled_model_agent.py")
    pairs = []
    for model in INPUTS:
        path = {name: str(folder / f"{model}{SUFFIXES[name]}") for name in FORMATS}
        ours = {name: agent(device, folder / model, name, threads, seconds) for name in FORMATS}
        like_tool = agent(device, folder / model, "tflite", threads, seconds, program=compiled_model)
        python = [sys.executable, str(HERE / "bare_loop.py")]
        onnx = bare([*python, "onnx", path["onnx"], *times])
        onnx_run = bare([*python, "onnx_run", path["onnx"], *times])
        tflite = bare([*python, "tflite", path["tflite"], *times])
        tflite_compiled = bare([*python, "tflite_compiled", path["tflite"], *times])
        executorch = bare([str(runner), path["executorch"], *times])
        tool = litert_tool(path["tflite"], threads, seconds)
        pairs += [
            Pair(model, "onnxruntime / bare loop", ours["onnx"], onnx),
            Pair(model, "litert / bare loop", ours["tflite"], tflite),
            Pair(model, "litert CompiledModel / its benchmark", like_tool, tool),
            Pair(model, "executorch / bare loop", ours["executorch"], executorch),
            Pair(model, "litert / its benchmark", ours["tflite"], tool, gated=model != "small"),
            Pair(model, "bare CompiledModel / bare Interpreter", tflite_compiled, tflite, gated=False),
            Pair(model, "bare Session.run / run_with_iobinding", onnx_run, onnx, gated=False),
        ]
    return pairs


def agent(
    device: session.Session,
    stem: Path,
    name: FormatName,
    threads: int,
    seconds: float,
    *,
    program: str | None = None,
) -> Loop:
    """The agent as a bench runs it, or another *program* of the same protocol in its place."""
    job = Job(
        kind="latency",
        format=name,
        backend=BACKENDS[name],
        model=device.push(stem.with_suffix(SUFFIXES[name])),
        check=device.push(stem.with_suffix(".ebt")),
        check_sets=1,
        check_min_sqnr_db=60.0,
        threads=threads,
        warmup_iterations=5,
        warmup_time_s=WARMUP_S,
        min_iterations=30,
        min_time_s=seconds,
        timeout_s=60.0,
    )
    if program is None:
        return lambda: statistics.median(device.run(job, 0).values_ns)
    argv = [sys.executable, program, *agent_process.arguments(job)]

    def run() -> float:
        block = agent_process.run(
            device.transport, argv, ENVIRONMENT, job, index=0, cpus=(), out_of_memory=lambda: False
        )
        return statistics.median(block.values_ns)

    return run


def bare(argv: list[str]) -> Loop:
    """A program that prints its median."""

    def run() -> float:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(argv)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])

    return run


def litert_tool(path: str, threads: int, seconds: float) -> Loop:
    """LiteRT's own benchmark, with as many runs as the others make in their time."""

    def run(runs: int, warmup: int) -> float:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            argv = [sys.executable, "-c", TOOL, f"--model={path}", f"--num_threads={threads}"]
            argv += [f"--num_runs={runs}", f"--warmup_runs={warmup}", f"--result_json={file.name}"]
            subprocess.run(argv, capture_output=True, check=True, env=ENVIRONMENT)
            return float(json.load(file)["latency"]["median_ms"]) * 1e6

    rough_ns = run(20, 5)
    return lambda: run(max(30, int(seconds * 1e9 / rough_ns)), max(5, int(WARMUP_S * 1e9 / rough_ns)))


def native(folder: Path) -> Path:
    """The bare loop over ExecuTorch, compiled as the runner is."""
    runner = runners.executorch(cache_dir())
    if isinstance(runner, runners.NoRunner):
        raise SystemExit(f"There is no native ExecuTorch runner to test: {runner.reason}.")
    include = runner.library_dir.parent / "include"
    target = folder / "bare_executorch"
    argv = ["g++", *runners.FLAGS, f"-isystem{include}", str(HERE / "bare_executorch.cpp"), "-o", str(target)]
    argv += [f"-isystem{include / 'executorch/runtime/core/portable_type/c10'}", f"-L{runner.library_dir}"]
    argv += ["-Wl,--no-as-needed", *(f"-l{name}" for name in runners.LIBRARIES)]
    subprocess.run([*argv, f"-Wl,-rpath,{runner.library_dir}"], check=True)
    return target


def measure(pairs: list[Pair], rounds: int) -> list[list[tuple[float, float]]]:
    """
    (ours, other) in ns of every pair in every round; who goes first alternates.

    A pair during which processes had to wait for a CPU tells of the others on this machine. It is run
    again, whatever its ratio was, until as many tries are lost as there are rounds; then all count.
    """
    figures: list[list[tuple[float, float]]] = [[] for _ in pairs]
    lost = [0] * len(pairs)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for index, pair in enumerate(pairs):
            values, waiting = one(pair, ours_first=number % 2 == 0)
            while waiting > WAITING and lost[index] < rounds:
                lost[index] += 1
                values, waiting = one(pair, ours_first=number % 2 == 0)
            figures[index].append(values)
    print(f"{sum(lost)} of {rounds * len(pairs) + sum(lost)} pairs were run again: others used the CPUs")
    return figures


def one(pair: Pair, *, ours_first: bool) -> tuple[tuple[float, float], float]:
    """(ours, other) of a pair, and the share of the time in which a process waited for a CPU."""
    waited_s, began_s = waiting_s(), time.monotonic()
    if ours_first:
        ours, other = pair.ours(), pair.other()
    else:
        other, ours = pair.other(), pair.ours()
    return (ours, other), (waiting_s() - waited_s) / (time.monotonic() - began_s)


def waiting_s() -> float:
    """How long in all some process had to wait for a CPU; 0 on a kernel without this count."""
    pressure = Path("/proc/pressure/cpu")
    return int(pressure.read_text().split("total=")[1].split()[0]) / 1e6 if pressure.exists() else 0.0


def show(pair: Pair, values: list[tuple[float, float]]) -> bool:
    """Print one pair; whether it is good."""
    ratios = sorted(ours / other for ours, other in values)
    ratio = statistics.median(ratios)
    ours, other = (units.duration(statistics.median(side)) for side in zip(*values, strict=True))
    apart_us = statistics.median(ours - other for ours, other in values) / 1e3
    good = abs(ratio - 1) <= LIMIT
    name = pair.name if pair.gated else f"({pair.name})"
    verdict = f"within 1.00 ± {LIMIT:.2f}: {'yes' if good else 'no'}" if pair.gated else f"{apart_us:+.1f} µs"
    spread = f"{ratios[0]:.3f} .. {ratios[-1]:.3f}"
    print(f"{pair.model:6} {name:39} {ours:>8} / {other:>8} = {ratio:.3f} ({spread})  {verdict}")
    return good or not pair.gated


def clock_ns() -> float:
    """What the agent's two clock readings cost."""
    times = [time.perf_counter_ns() for _ in range(10001)]
    return statistics.median(after - before for before, after in itertools.pairwise(times))


if __name__ == "__main__":
    sys.exit(main())
