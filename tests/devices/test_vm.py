"""What only a machine with its own kernel can show: true memory, a reset in a block, a clock that jumps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harness.core.types import Block, Record
from tests.devices import stages
from tests.devices.hosts import Host
from tests.devices.machines import Machine
from tests.devices.networks import wait_until

PROVISION_S = 600.0
PATIENCE_S = 60.0  # it boots within this
WORKDIR = "/root/.edgebench"


@dataclass(frozen=True, slots=True)
class Board:
    """The machine and a host that has provisioned it."""

    vm: Machine
    host: Host

    def bench(self, name: str, *words: str) -> subprocess.Popen[str]:
        """Start a run of the shipped model."""
        common = ("bench", "--quick", "--model", "digits_cnn", "--device", "vm", "--run", name)
        return self.host.start(*common, *words)

    def in_block(self, name: str, number: int) -> None:
        """Wait until block *number* of the run's only cell is being measured."""

        def running() -> bool:
            return self.host.blocks(name) == number - 1 and bool(self.vm.processes("agent-", "mode=latency"))

        wait_until(running, f"block {number} of {name}", timeout_s=180)

    def is_clean(self) -> None:
        """Nothing of ours runs there, and it is nobody's."""
        wait_until(lambda: not self.vm.processes(), f"ended: {self.vm.processes()}", timeout_s=30)
        assert self.vm.run(f"ls {WORKDIR}/lease.json {WORKDIR}/restore.json 2>/dev/null || true") == ""


@pytest.fixture(scope="module")
def board(vm: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    host = Host(tmp_path_factory.mktemp("host"))
    host.knows([f"{vm.address} {vm.host_key}"])
    entry = {"transport": "ssh", "host": vm.address, "user": "root", "identity": str(vm.user_key)}
    host.has_devices({"vm": {**entry, "emulated": True, "patience_s": PATIENCE_S}})
    done = host.run("provision", "vm", "--json", timeout_s=PROVISION_S)
    assert done.exit_code == 0, done
    (answer,) = json.loads(done.out)
    assert set(answer["runtimes"]) == {"onnxruntime", "litert", "executorch"}, answer
    sent = answer["pushed_bytes"] / 1e6
    stages.figure(f"{answer['wall_s']:8.1f} s  provision of the arm64 machine: {sent:.1f} MB sent")
    yield Board(vm, host)
    assert host.run("provision", "vm", "--remove", timeout_s=PROVISION_S).exit_code == 0
    assert vm.run("ls -A /root | grep -v kept || true") == ""


def peaks(record: Record) -> dict[str, int]:
    """Peak resident bytes of each mark of the memory block."""
    (block,) = (block for block in record.blocks if block.kind == "memory")
    return {mark.name: mark.peak_rss_bytes for mark in block.marks}


def test_memory_is_that_of_the_runtime_and_the_model(board: Board) -> None:
    done = board.host.end(board.bench("memory", "--blocks", "1"), timeout_s=PROVISION_S)
    assert done.exit_code == 0, done
    records = {record.cell.format: record for record in board.host.read("memory").records}
    assert {record.status for record in records.values()} == {"measured"}
    peak = {name: max(peaks(record).values()) for name, record in records.items()}
    for name, value in peak.items():
        stages.figure(f"{value / 2**20:8.1f} MiB  peak of {name} in the arm64 machine")
        artifact = records[name].artifact
        assert artifact
        assert artifact.bytes < value < 400 << 20
        assert peaks(records[name])["baseline"] <= value
    assert peak["executorch"] < min(peak["onnx"], peak["tflite"])  # a native runner holds no Python
    assert peak["executorch"] < 64 << 20
    board.is_clean()


def test_a_reset_in_a_block_is_an_incident_and_the_run_is_whole(board: Board) -> None:
    before = board.vm.boot_id
    words = ("--format", "onnx", "--blocks", "2", "--min-time", "6")
    child = board.bench("reset", *words)
    board.in_block("reset", 2)
    kept = board.host.record("reset").blocks
    board.vm.monitor("system_reset")
    done = board.host.end(child, timeout_s=PROVISION_S)
    record = board.host.record("reset")
    assert done.exit_code == 0, done
    assert record.status == "measured", record.reason
    assert board.vm.boot_id != before
    assert "rebooted" in {incident.kind for incident in record.incidents}, record.incidents
    counted = sorted((block.kind, block.index) for block in record.blocks)
    assert counted == [("latency", 0), ("latency", 1), ("memory", 0)]
    assert record.blocks[: len(kept)] == kept
    board.is_clean()


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_in_a_block_changes_no_time(board: Board, days: int) -> None:
    name = f"jump{days}"
    child = board.bench(name, "--format", "onnx", "--blocks", "2", "--min-time", "6")
    board.in_block(name, 2)
    now = int(board.vm.run("date +%s"))
    board.vm.run(f"date -s @{now + days * 86400}")
    try:
        done = board.host.end(child, timeout_s=PROVISION_S)
        record = board.host.record(name)
        assert done.exit_code == 0, done
        assert record.status == "measured", record.reason
        assert record.incidents == ()  # neither timed out nor taken for a reboot, nor the lease for over
        for block in record.blocks:
            assert plausible(block, limit_s=60)
        board.is_clean()
    finally:
        board.vm.run(f"date -s @{int(board.vm.run('date +%s')) - days * 86400}")


def plausible(block: Block, *, limit_s: float) -> bool:
    """Every time of the block is positive and short of *limit_s*."""
    times: list[Any] = [block.load_ns, block.first_inference_ns, *block.values_ns]
    times += [block.wall_ns, block.cpu_ns] if block.kind == "latency" else []
    return all(0 < time_ns < limit_s * 1e9 for time_ns in times)
