"""`edgebench provision` makes bare arm userlands ready; their outputs equal the host's; no trace is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.core.types import Record
from tests.devices import device_trees, stages
from tests.devices.conftest import StartNode
from tests.devices.hosts import Host
from tests.devices.networks import wait_until
from tests.devices.nodes import Node, Userland

#: How near an fp32 file's outputs on the device are to those of the same file on this machine.
FP32_SQNR_DB = 80.0
NOT_RANKED = "its times are the emulator's, so digits_cnn on board with 1 thread is not ranked."
BENCH_S = 600.0


@dataclass(frozen=True, slots=True)
class Ready:
    """A device as its owner took it out of the box, and a host that knows it."""

    device: Node
    host: Host
    home: Path  # the user's, on the device

    def provision(self, *words: str) -> dict[str, Any]:
        """``edgebench provision``: its answer for this device."""
        done = self.host.run("provision", "board", "--json", *words, timeout_s=BENCH_S)
        assert done.exit_code == 0, done
        (answer,) = json.loads(done.out)
        return dict(answer)

    def doctor(self) -> dict[str, Mapping[str, str]]:
        """The lines of ``edgebench doctor`` by name."""
        done = self.host.run("doctor", "board", "--json", timeout_s=BENCH_S)
        (page,) = json.loads(done.out)
        return {line["name"]: line for line in page["lines"]}

    def bench(self, name: str, *words: str) -> list[Record]:
        """A quick run of the shipped model."""
        plan = ("--quick", "--model", "digits_cnn", "--device", "board", "--run", name)
        done = self.host.run("bench", *plan, *words, timeout_s=BENCH_S)
        assert done.exit_code == 0, done
        assert "is not ranked" in " ".join(done.out.split())
        return list(self.host.read(name).records)

    def is_bare(self) -> None:
        """Nothing of ours is there, and nothing runs."""
        assert sorted(path.name for path in self.home.iterdir()) == []
        # The supervisor ends when its input does, which takes an emulated Python a moment.
        wait_until(lambda: self.device.processes() == [], "the end of all that is ours on the device")


def ready(start: StartNode, home: Path, userland: Userland, *, user: str, **entry: object) -> Ready:
    device, host = start("board", userland=userland), Host(home)
    host.knows([f"{device.address} {device.host_key}"])
    options = {"host": device.address, "user": user, "identity": str(device.user_key)}
    host.has_devices({"board": {"transport": "ssh", "emulated": True, **options, **entry}})
    return Ready(device, host, device.path("/root" if user == "root" else f"/home/{user}"))


def told(answer: Mapping[str, Any], what: str) -> None:
    sent = answer["pushed_bytes"] / 1e6
    stages.figure(f"{answer['wall_s']:8.1f} s  {what}: {sent:.1f} MB sent in {answer['pushed_files']} files")


def is_right(record: Record) -> None:
    """It was measured, on an emulated device, and its outputs equal those on this machine."""
    cell = f"{record.cell.recipe} {record.cell.format}"
    assert record.status == "measured", f"{cell}: {record.reason}"
    assert record.device["emulated"] is True
    checks = [block.facts["check"] for block in record.blocks]
    assert len(checks) == record.plan.blocks + record.plan.memory_blocks
    for check in checks:
        assert check["sets"] > 0
        if record.cell.recipe == "fp32":
            assert check["sqnr_db"] >= FP32_SQNR_DB, f"{cell}: {check}"
    assert len({(check["sqnr_db"], check["max_abs"]) for check in checks}) == 1  # every process says the same
    assert record.runtime


@pytest.mark.parametrize("user", ["pi", "root"])
def test_a_bare_64_bit_pi_runs_all_three_formats(
    start: StartNode, tmp_path: Path, pi5: Userland, user: str
) -> None:
    board = ready(start, tmp_path, pi5, user=user)
    board.is_bare()
    page = board.doctor()
    assert device_trees.PI5_MODEL in page["model"]["text"]
    first = board.provision()
    told(first, f"provision of a bare aarch64 userland as {user}")
    assert set(first["runtimes"]) == {"onnxruntime", "litert", "executorch"}, first["missing"]
    assert first["pushed_bytes"] > 1_000_000
    second = board.provision()
    told(second, "the same again")
    assert (second["pushed_bytes"], second["pushed_files"]) == (0, 0)
    assert second["runtimes"] == first["runtimes"]
    if user == "pi":
        recipes = ("--recipe", "fp32", "--recipe", "int8")
        records = board.bench("all", *recipes)
        assert len(records) == 6
        for record in records:
            is_right(record)
        engines = {record.cell.format: record.runtime.engine for record in records if record.runtime}
        assert engines == {"executorch": "native", "onnx": "python", "tflite": "python"}
        versions = {record.runtime.name: record.runtime.version for record in records if record.runtime}
        assert versions == first["runtimes"]
        for to in ("table", "markdown"):
            report = board.host.run("report", "all", "--to", to)
            assert f"board is emulated: {NOT_RANKED}" in " ".join(report.out.split()), report
    removed = board.provision("--remove")
    assert removed["removed_bytes"] > first["pushed_bytes"]
    board.is_bare()


def test_a_bare_32_bit_pi_runs_tflite_and_says_why_not_the_others(
    start: StartNode, tmp_path: Path, pi3: Userland
) -> None:
    board = ready(start, tmp_path, pi3, user="pi")
    page = board.doctor()
    assert device_trees.PI3_MODEL in page["model"]["text"]
    first = board.provision()
    told(first, "provision of a bare armhf userland")
    assert set(first["runtimes"]) == {"litert"}, first["missing"]
    assert set(first["missing"]) == {"onnxruntime", "executorch"}
    assert board.provision()["pushed_bytes"] == 0
    records = {
        (record.cell.recipe, record.cell.format): record
        for record in board.bench("all", "--recipe", "fp32", "--recipe", "int8")
    }
    for (_, name), record in records.items():
        if name == "tflite":
            is_right(record)
        else:
            assert record.status == "runtime_missing"
            runtime = {"onnx": "onnxruntime", "executorch": "executorch"}[name]
            assert first["missing"][runtime] in str(record.reason)
    board.provision("--remove")
    board.is_bare()


def test_a_jetson_gets_its_power_mode_and_has_it_back_afterwards(
    start: StartNode, tmp_path: Path, orin: Userland
) -> None:
    board = ready(start, tmp_path, orin, user="root", power_mode="MAXN_SUPER")
    page = board.doctor()
    assert device_trees.ORIN_MODEL in page["model"]["text"]
    power = " ".join(line["text"] for name, line in page.items() if "power" in name)
    assert "25W" in power
    assert "3 rails" in power  # channel 7 of the sensor is a sum, and no rail
    board.provision("--runtime", "onnxruntime")
    (record,) = board.bench("maxn", "--format", "onnx")
    is_right(record)
    for block in record.blocks:
        assert block.settings["power_mode"].observed == "MAXN_SUPER"
    state = board.device.path("/var/lib/nvpmodel-mode")
    assert state.read_text().strip() == "1", "the mode from before is back"
    board.provision("--remove")
    board.is_bare()
