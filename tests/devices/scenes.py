"""One device, one host and one small cell, and what must be true of them after every fault."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.types import Record
from tests.devices.hosts import Done, Host
from tests.devices.networks import sh, wait_until
from tests.devices.nodes import Node, Process

BLOCKS = 2
BLOCK_S = 2.0  # what an undisturbed block takes: long enough to be disturbed in
PATIENCE_S = 8.0
RUN = "fault"


@dataclass(slots=True, kw_only=True)
class Scene:
    """A host that measures one model file on one device, to be disturbed while it does."""

    device: Node
    host: Host
    model: Path
    options: dict[str, Any] = field(default_factory=dict)  # of the device's entry
    timeout_s: float = 60.0  # of a block
    child: subprocess.Popen[str] | None = None
    kept: Record | None = (
        None  # the record when the fault happened: what it has must still be there at the end
    )

    def entry(self) -> dict[str, Any]:
        """The device in devices.yaml."""
        return {
            "transport": "ssh",
            "host": self.device.address,
            "user": "root",
            "identity": str(self.device.user_key),
            "python": sys.executable,
            "patience_s": PATIENCE_S,
            "connect_timeout_s": 4,
            **self.options,
        }

    @property
    def workdir(self) -> Path:
        """The folder on the device that is edgebench's."""
        return Path(self.options.get("workdir") or self.device.folder / "root" / ".edgebench")

    def begin(self) -> None:
        """Write what the host knows and start the run."""
        self.host.has_devices({"device": self.entry()})
        if not (self.host.home / ".ssh" / "known_hosts").exists():
            self.host.knows([f"{self.device.address} {self.device.host_key}"])
        plan = ("--blocks", str(BLOCKS), "--min-time", str(BLOCK_S), "--timeout", str(self.timeout_s))
        words = ("bench", str(self.model), "--device", "device", "--run", RUN, "--quick", *plan)
        self.child = self.host.start(*words)

    def end(self, *, timeout_s: float = 120.0) -> Done:
        """Wait for the run to end by itself."""
        assert self.child
        return self.host.end(self.child, timeout_s=timeout_s)

    def resume(self) -> Done:
        """Go on with the run, on a device that may still be held by the host that died."""
        words = ("bench", "--resume", RUN, "--wait-for-device", str(3 * PATIENCE_S))
        return self.host.run(*words)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until *condition* holds; AssertionError when the run ends before, or it takes too long."""

        def holds() -> bool:
            if condition():
                return True
            assert self.child
            if self.child.poll() is not None:
                raise AssertionError(f"the run ended before {what}: {self.end()}")
            return False

        wait_until(holds, what, timeout_s=60)

    def agents(self) -> list[Process]:
        """The processes on the device that measure."""
        return self.device.processes("agent-", "mode=")

    def in_block(self, number: int = 2) -> Process:
        """Wait until block *number* is being measured; its process. What was stored before is remembered."""
        self.wait_for(lambda: self.host.blocks(RUN) == number - 1 and self.agents(), f"block {number} runs")
        self.kept = self.host.record(RUN)
        (agent,) = (process for process in self.agents() if "mode=latency" in process.argv)
        return agent

    def next_agent(self, before: int) -> Process:
        """Wait until a block is tried again, by another process than *before*."""
        self.wait_for(lambda: [p for p in self.agents() if p.pid != before], "the block is tried again")
        return next(process for process in self.agents() if process.pid != before)

    def in_push(self) -> None:
        """Wait until some of the model file, but not all of it, is on the device."""
        size = self.model.stat().st_size
        self.wait_for(lambda: size / 20 < self.pushed_bytes() < size * 0.8, "the file is being sent")

    def wait_until_noticed(self) -> None:
        """Wait until the host has given up its connection to the device."""
        peer = ("dst", self.device.address)
        self.wait_for(lambda: not sh("ss", "-Htn", "state", "established", *peer).strip(), "it is noticed")

    def pushed_bytes(self) -> int:
        """The largest file below the device's work folder."""
        files = [path for path in self.workdir.rglob("*") if path.is_file()] if self.workdir.is_dir() else []
        sizes = [0]
        for path in files:
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        return max(sizes)

    # --- what must be true --------------------------------------------------------------------------

    def record(self) -> Record:
        """The record of the only cell, after the checks that hold for every record."""
        record = self.host.record(RUN)
        assert (record.reason is None) == (record.status == "measured")
        counted = Counter((block.kind, block.index) for block in record.blocks)
        assert set(counted.values()) <= {1}, f"counted twice: {counted}"
        if self.kept:
            assert record.blocks[: len(self.kept.blocks)] == self.kept.blocks, "a finished block was lost"
        return record

    def is_complete(self) -> Record:
        """Every block is there, once, with its values."""
        record = self.record()
        assert record.status == "measured", record.reason
        wanted = [("latency", index) for index in range(BLOCKS)] + [("memory", 0)]
        assert sorted((block.kind, block.index) for block in record.blocks) == wanted
        assert all(block.values_ns for block in record.blocks if block.kind == "latency")
        return record

    def is_clean(self) -> None:
        """Nothing of ours runs on the device, and it is nobody's."""
        limit_s = 3 * PATIENCE_S + 10  # a host that vanished is waited for as long as its lease holds
        wait_until(
            lambda: not self.device.processes(), f"ended: {self.device.processes()}", timeout_s=limit_s
        )
        left = [name for name in ("lease.json", "restore.json") if (self.workdir / name).exists()]
        assert not left, f"left on the device: {left}"
        jobs = self.workdir / "jobs"
        ended = [path for path in jobs.iterdir() if not (path / "end").exists()] if jobs.is_dir() else []
        assert not ended, f"jobs without an end: {ended}"

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send the host's process a signal."""
        assert self.child
        self.child.send_signal(number)

    def close(self) -> None:
        """End the host's process, if a test failed before it ended."""
        if self.child and self.child.poll() is None:
            self.child.kill()
            self.child.wait()


def tiny_model(path: Path, *, parameters: int) -> Path:
    """An .onnx file of one matrix with about this many random parameters."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    width = max(4, parameters // 256)
    weights = np.random.default_rng(0).normal(size=(width, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weights"], ["output"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 256])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
