"""The decoder as a device runs it: events on standard output, files whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

import device_agents
from compressors import container
from harness.core import events
from harness.core.errors import CellError

PROGRAM = Path(device_agents.__file__).with_name("container.py")
FILE = b"head" + numpy.where(numpy.arange(4000) % 9, 0, numpy.arange(4000) % 5).astype("<f4").tobytes()


def run(*argv: str, isolated: bool = False) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events; *isolated*: without numpy."""
    done = subprocess.run(
        [sys.executable, *(["-I", "-S"] if isolated else []), str(PROGRAM), *argv],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("isolated", "by"), [(False, "numpy"), (True, "python")])
def test_unpacks_and_tells_what_it_cost(tmp_path: Path, isolated: bool, by: str) -> None:
    packed, model = tmp_path / "m.ebz", tmp_path / "m.onnx"
    packed.write_bytes(container.pack(FILE))
    code, said = run(f"container={packed}", f"model={model}", isolated=isolated)
    assert code == 0
    assert model.read_bytes() == FILE
    found = events.read_unpacking(json.dumps(event) for event in said)
    assert found.pop("decode_ns") > 0
    assert found == {"container_bytes": packed.stat().st_size, "model_bytes": len(FILE), "decoder": by}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ebz", "m.onnx"]


def test_a_damaged_container_is_a_typed_failure_and_leaves_no_file(tmp_path: Path) -> None:
    packed, model = tmp_path / "m.ebz", tmp_path / "m.onnx"
    packed.write_bytes(container.pack(FILE)[:-3])
    code, said = run(f"container={packed}", f"model={model}")
    assert code == 1
    with pytest.raises(CellError, match="The container ends too early") as caught:
        events.read_unpacking(json.dumps(event) for event in said)
    assert caught.value.status == "load_failed"
    assert not model.exists()


def test_a_missing_file_and_wrong_arguments_are_told(tmp_path: Path) -> None:
    for argv, words in (
        ((f"container={tmp_path}/none", f"model={tmp_path}/m"), "No such file"),
        (("mode=probe",), "expected container=PATH and model=PATH"),
    ):
        code, said = run(*argv)
        assert code == 1
        with pytest.raises(CellError, match=words):
            events.read_unpacking(json.dumps(event) for event in said)


def test_a_stream_without_the_span_is_no_result() -> None:
    lines = [
        json.dumps(
            {
                "event": "hello",
                "protocol": 1,
                "agent": "container",
                "pid": 1,
                "runtime": None,
                "version": None,
            }
        ),
        json.dumps({"event": "end", "status": "ok"}),
    ]
    with pytest.raises(CellError, match="no span decode"):
        events.read_unpacking(lines)
