"""ONNX Runtime's wheel carries telemetry; whoever loads it on the host must have switched it off before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[2]
# The library starts its uploader and leaves an identifier a moment after the import.
OUTPUTS = """
import pathlib, sys, time, numpy
from compressors.formats import onnx
print(list(onnx.outputs(pathlib.Path(sys.argv[1]), [(numpy.ones(4, numpy.float32),)]))[0][0].tolist())
time.sleep(2)
"""
BARE_LOOP = """
import runpy, sys
sys.argv = ["bare_loop.py", "{runtime}", sys.argv[1], "1", "0.1", "2"]
runpy.run_path("benchmarks/bare_loop.py", run_name="__main__")
"""


def run(code: str, folder: Path) -> list[Path]:
    """What *code*, run on a model file in *folder*, leaves in a home folder that was empty."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
    )
    path = folder / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    home = folder / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(home.rglob("*"))


@pytest.mark.parametrize(
    "code",
    [OUTPUTS, BARE_LOOP.format(runtime="onnx"), BARE_LOOP.format(runtime="onnx_run")],
    ids=["outputs", "bare loop", "bare loop with Session.run"],
)
def test_nothing_is_left_in_the_home_folder(code: str, tmp_path: Path) -> None:
    assert run(code, tmp_path) == []
