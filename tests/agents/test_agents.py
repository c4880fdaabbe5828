"""Every agent keeps to PROTOCOL.md, with real runtimes and real models."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import agent_process, probing
from harness.core import events, tensors
from harness.core.errors import CellError
from harness.core.types import BlockKind, Job
from tests.agents.conftest import ENGINES, FAST, Agent, each
from tests.agents.models import OPERATOR, SETS

KINDS = ("latency", "memory")


def failure(agent: Agent, job: Job) -> CellError:
    with pytest.raises(CellError) as caught:
        agent.run(job)
    return caught.value


@each(*FAST)
def test_a_latency_block_is_complete_and_says_what_ran(agent: Agent) -> None:
    block = agent.run(agent.job("net", min_iterations=1500))
    assert len(block.values_ns) == 1500  # in two chunks
    assert len(block.warmup_ns) == 2
    assert min(block.values_ns) > 0
    assert block.load_ns > 0
    assert block.first_inference_ns > 0
    assert sum(block.values_ns) <= block.wall_ns
    assert block.facts["agent"] == ("native" if agent.name.endswith("native") else "python")
    assert block.facts["check"]["sqnr_db"] > 100
    assert block.facts["check"]["sets"] == SETS
    assert block.settings["threads"].observed == 1


@each(*FAST)
def test_a_memory_block_tells_baseline_load_and_inference_apart(agent: Agent) -> None:
    block = agent.run(agent.job("wide", kind="memory"))
    assert [mark.name for mark in block.marks] == ["baseline", "loaded", "first_inference", "steady"]
    assert block.values_ns == ()
    for mark in block.marks:
        assert 0 < mark.rss_bytes <= mark.peak_rss_bytes
        assert mark.anon_bytes + mark.file_bytes == pytest.approx(mark.rss_bytes, rel=0.05)
    baseline, *_, steady = block.marks
    weights = 250_000  # of `wide`, in bytes
    assert steady.anon_bytes - baseline.anon_bytes > weights
    assert block.facts["clear_refs"] is True


@each("onnxruntime", "executorch-native")
def test_the_high_water_mark_starts_anew_at_every_mark(agent: Agent) -> None:
    """Else the peak of loading, when the weights are there twice, would be sold as the peak of inference."""
    _, loaded, first, steady = agent.run(agent.job("heavy", kind="memory")).marks
    assert loaded.peak_rss_bytes > loaded.rss_bytes + 4 * 2**20
    assert first.peak_rss_bytes < loaded.peak_rss_bytes - 4 * 2**20
    assert steady.peak_rss_bytes < loaded.peak_rss_bytes - 4 * 2**20


@each(*FAST)
def test_two_inputs_three_outputs_and_three_dtypes(agent: Agent) -> None:
    assert agent.run(agent.job("mixed")).facts["check"] == {"sqnr_db": 200.0, "max_abs": 0.0, "sets": SETS}


@each(*FAST)
def test_a_model_that_overwrites_its_input_is_right_in_every_run(agent: Agent) -> None:
    """ExecuTorch plans `chain` so: without new inputs a second run computes with what is left of them."""
    assert agent.run(agent.job("chain")).facts["check"]["sqnr_db"] > 100


@each(*FAST)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_mean_the_same_in_every_runtime(agent: Agent, threads: int) -> None:
    """
    The pool's size is read back, and CPU time over wall time shows that one thread is one thread.

    Also when numpy has threads of its own, which spin for a while after each of its matrix products.
    """
    job = agent.job("wide", threads=threads, min_iterations=30, warmup_iterations=3)
    lines = agent.raw(*agent.command(job)[len(agent.argv) :], env={"OPENBLAS_NUM_THREADS": "2"}).stdout
    block = events.read_block(lines.splitlines(), job, index=0, started_utc="")
    assert block.settings["threads"].requested == threads
    assert block.settings["threads"].observed == threads
    share = block.cpu_ns / block.wall_ns
    assert 0.05 < share <= threads + 0.2


@each(*FAST)
def test_two_threads_both_work(agent: Agent) -> None:
    """Whatever else this machine does: two threads of the process gain CPU time in the timed loop."""
    job = agent.job("wide", threads=2, min_time_s=60.0)
    with started(agent, job) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "state_before" in line)
        before = ticks(process.pid)
        deadline = time.monotonic() + 20
        working = 0
        while working < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            working = sum(now > before.get(task, 0) for task, now in ticks(process.pid).items())
        process.kill()
    assert working == 2


def started(agent: Agent, job: Job) -> subprocess.Popen[str]:
    environment = agent_process.ENVIRONMENT | dict(agent.env)
    return subprocess.Popen(
        agent.command(job), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def ticks(pid: int) -> dict[str, int]:
    """User CPU time by thread."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {task.name: int((task / "stat").read_text().rsplit(")", 1)[1].split()[11]) for task in tasks}


@each(*ENGINES)
def test_an_unknown_operator_is_named(agent: Agent) -> None:
    error = failure(agent, agent.job("unknown", check=str(agent.models / "net.ebt")))
    assert error.status == "unsupported_op"
    assert OPERATOR in error.message


@each(*FAST)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_does_not_load(agent: Agent, share: float, tmp_path: Path) -> None:
    whole = Path(agent.job("net").model)
    part = tmp_path / whole.name
    part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert failure(agent, agent.job("net", model=str(part))).status == "load_failed"


@each(*FAST)
@pytest.mark.parametrize("content", [b"\x00" * 4096, b"no model at all", random.Random(0).randbytes(8192)])
def test_what_is_no_model_does_not_load(agent: Agent, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    assert failure(agent, agent.job("net", model=str(path))).status == "load_failed"


@each("executorch-native")
def test_a_damaged_program_never_crashes_or_hangs_the_agent(agent: Agent, tmp_path: Path) -> None:
    """ExecuTorch verifies a program only on request; unverified, damage ends in signals and endless loops."""
    whole = Path(agent.job("net").model).read_bytes()
    generator = random.Random(1)
    path = tmp_path / "damaged.pte"
    job = agent.job("net", model=str(path), warmup_iterations=0, min_iterations=1)
    for _ in range(60):
        damaged = bytearray(whole)
        at = generator.randrange(8, 3000)
        damaged[at : at + 4] = generator.randbytes(4)
        path.write_bytes(damaged)
        assert agent.raw(*agent.command(job)[len(agent.argv) :]).returncode in (0, 1)


@each(*FAST)
def test_a_missing_file_does_not_load_and_is_named(agent: Agent, tmp_path: Path) -> None:
    error = failure(agent, agent.job("net", model=str(tmp_path / "nowhere")))
    assert error.status == "load_failed"
    assert "nowhere" in error.message


@each(*FAST)
def test_a_name_of_any_bytes_still_makes_events(agent: Agent, tmp_path: Path) -> None:
    """Quotes, line breaks and bytes that are no UTF-8 do not break the lines."""
    name = os.fsdecode(b'a "b\\ \n\t\x01 \xff \xf0\x9f\x98\x80 \xed\xa0\x80.model')
    assert failure(agent, agent.job("net", model=str(tmp_path / name))).status == "load_failed"


def changed(agent: Agent, path: Path, change: float, *, at: int = 0) -> Job:
    """The block of `net` with one expected value of the last output set moved."""
    values = tensors.load(Path(agent.job("net").check))
    last = values[-1]
    numbers = list(struct.unpack(f"<{len(last.data) // 4}f", last.data))
    numbers[at] += change
    values[-1] = replace(last, data=struct.pack(f"<{len(numbers)}f", *numbers))
    tensors.dump(path, values)
    return agent.job("net", check=str(path))


@each(*FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_outputs_are_never_timed(agent: Agent, kind: BlockKind, tmp_path: Path) -> None:
    job = replace(changed(agent, tmp_path / "c.ebt", 1.0), kind=kind)
    lines = agent.lines(job)
    told = [json.loads(line) for line in lines]
    assert told[-1]["event"] == "error"
    assert told[-1]["stage"] == "check"
    assert not [event for event in told if event["event"] in ("value", "warmup")]
    with pytest.raises(CellError) as caught:
        events.read_block(lines, job, index=0, started_utc="")
    assert caught.value.status == "wrong_output"


@each(*FAST)
def test_the_distance_of_outputs_is_what_the_formula_says(agent: Agent, tmp_path: Path) -> None:
    job = changed(agent, tmp_path / "c.ebt", 0.01)
    wanted = tensors.load(Path(job.check))[-SETS:]
    numbers = [value for t in wanted for value in struct.unpack(f"<{len(t.data) // 4}f", t.data)]
    sqnr_db = 10 * math.log10(sum(v * v for v in numbers) / 0.01**2)
    check = agent.run(replace(job, check_min_sqnr_db=10.0)).facts["check"]
    assert check["sqnr_db"] == pytest.approx(sqnr_db, abs=0.01)
    assert check["max_abs"] == pytest.approx(0.01, rel=1e-3)


@each(*FAST)
@pytest.mark.parametrize("change", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_wrong(agent: Agent, change: float, tmp_path: Path) -> None:
    told = agent.events(changed(agent, tmp_path / "c.ebt", change))
    check = next(event for event in told if event["event"] == "check")
    assert check["sqnr_db"] == -200.0
    assert check["max_abs"] is None
    assert told[-1]["status"] == "wrong_output"


@each(*FAST)
def test_outputs_of_another_shape_or_dtype_are_wrong(agent: Agent, tmp_path: Path) -> None:
    for change in ({"dtype": "int32"}, {"shape": (5, 1)}):
        values = tensors.load(Path(agent.job("net").check))
        values[-1] = replace(values[-1], **change)
        tensors.dump(tmp_path / "c.ebt", values)
        error = failure(agent, agent.job("net", check=str(tmp_path / "c.ebt")))
        assert error.status == "wrong_output"
        assert "expected" in error.message


@each(*FAST)
def test_a_damaged_check_file_is_an_error(agent: Agent, tmp_path: Path) -> None:
    whole = Path(agent.job("net").check).read_bytes()
    for content in (b"", b"EBT2 1\n", b"EBT1 1\nfloat99 1\n1234", whole[:-1]):
        (tmp_path / "c.ebt").write_bytes(content)
        assert failure(agent, agent.job("net", check=str(tmp_path / "c.ebt"))).status == "agent_failed"
    assert failure(agent, agent.job("net", check_sets=4)).status == "agent_failed"


@each(*FAST)
def test_arguments_are_taken_exactly(agent: Agent) -> None:
    good = agent.command(agent.job("net"))[len(agent.argv) :]
    bad = [
        [],
        ["mode=dance"],
        good[:-1],
        [*good, "more=1"],
        [*good[:-1], "min_time_s=soon"],
        ["mode=probe", "a=b"],
    ]
    for arguments in bad:
        done = agent.raw(*arguments)
        with pytest.raises(CellError) as caught:
            list(events.read_events(done.stdout.splitlines()))
        assert caught.value.status == "agent_failed"
        assert done.returncode == 1


@each(*FAST)
def test_an_unknown_backend_is_refused_and_not_replaced(agent: Agent) -> None:
    error = failure(agent, agent.job("net", backend="npu"))
    assert error.status == "load_failed"
    assert "npu" in error.message or "xnnpack only" in error.message


@each("litert")
def test_litert_runs_without_its_delegate(agent: Agent) -> None:
    assert agent.run(agent.job("net", backend="cpu")).facts["check"]["sqnr_db"] > 100


@each(*FAST)
def test_an_agent_that_is_killed_leaves_no_result(agent: Agent) -> None:
    job = agent.job("net", min_time_s=60.0)
    with started(agent, job) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if '"state_before"' in line:
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(CellError, match="ended after fact state_before, without end") as caught:
        events.read_block(lines, job, index=0, started_utc="")
    assert caught.value.status == "agent_failed"


@each(*FAST)
def test_what_a_library_prints_is_no_event(agent: Agent, tmp_path: Path) -> None:
    """Here it is the C library that prints, in the middle of a block."""
    source, library = tmp_path / "chatter.c", tmp_path / "chatter.so"
    source.write_text(
        '#include <stdio.h>\nint getloadavg(double *load, int n) { puts("chatter"); fflush(stdout);'
        " for (int i = 0; i < n; i++) load[i] = 0.25; return n; }\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    job = agent.job("net")
    done = agent.raw(*agent.command(job)[len(agent.argv) :], env={"LD_PRELOAD": str(library)})
    block = events.read_block(done.stdout.splitlines(), job, index=0, started_utc="")
    assert block.facts["state_after"]["load_average_1min"] == 0.25
    assert done.stderr.count("chatter") == 2


@each("onnxruntime", "litert", "executorch-python")
def test_a_missing_runtime_names_the_command(agent: Agent) -> None:
    """An interpreter without site-packages has no runtime."""
    isolated = replace(agent, argv=(sys.executable, "-S", "-I", agent.argv[1]))
    error = failure(isolated, isolated.job("net"))
    assert error.status == "runtime_missing"
    assert "pip install" in error.message


@each("executorch-native")
def test_the_native_agent_knows_its_device(agent: Agent) -> None:
    facts = events.read_probe(agent.raw("mode=probe").stdout.splitlines())
    assert facts["runtimes"]["executorch"] == "1.5.1"
    assert facts["cores"] >= facts["cpus_allowed"] >= 1
    assert facts["memory_total_bytes"] > 2**27
    assert facts["arch"] == os.uname().machine
    for name, value in facts.items():
        assert value is not None or facts["reasons"][name]


@pytest.mark.parametrize("kind", KINDS)
def test_both_agents_tell_the_same_facts(kind: str, make_agent: Callable[[str], Agent]) -> None:
    """A block is judged alike whoever measured it."""
    agents = [make_agent("onnxruntime"), make_agent("executorch-native")]
    python, native = (one.run(one.job("net", kind=kind)).facts for one in agents)
    assert set(python) == set(native) - {"delegates", "planned_memory_bytes"}
    for name in ("state_before", "state_after"):
        assert set(python[name]) == set(native[name])


def test_the_native_agent_and_the_probe_know_a_device_as_the_same(
    make_agent: Callable[[str], Agent],
) -> None:
    probe = [sys.executable, str(probing.PROBE), "mode=probe"]
    done = subprocess.run(probe, env=agent_process.ENVIRONMENT, capture_output=True, text=True, timeout=60)
    told = events.read_probe(done.stdout.splitlines())
    native = events.read_probe(make_agent("executorch-native").raw("mode=probe").stdout.splitlines())
    for name in native.keys() - {"python", "runtimes", "oom_kills", "reasons"}:
        assert told[name] == native[name], name
        assert told.get("reasons", {}).get(name) == native.get("reasons", {}).get(name), name
