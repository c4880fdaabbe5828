"""Names of devices and models do nothing but work, or give one clear error: no shell, no other folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from harness import cli

HOSTILE = (
    "x; touch owned",
    "../../x",
    "$(touch owned)",
    "`touch owned`",
    "a 'b' \"c\"",
    "--help",
    "[red]b[/red] *",
    "é😀",
)


def model(path: Path) -> Path:
    """y = x + x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, some levels below one where everything that appears is seen."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    return folder


def bench(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.run(["bench", "--quick", "--min-time", "0.001", "--blocks", "1", "--run", "night", *argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_devices_of_any_name_are_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {name: {"transport": "local"} for name in HOSTILE}
    (place / "devices.yaml").write_text(json.dumps({"devices": entries}, ensure_ascii=False))
    code, out, _ = bench(capsys, str(model(place / "m.onnx")), "--all")
    assert code == 0, out
    records = sorted(path for path in (place / "results" / "night").glob("*--*.json"))
    assert {json.loads(path.read_text())["cell"]["device"] for path in records} == set(HOSTILE)
    assert len(records) == len(HOSTILE)
    assert not list(tmp_path.rglob("owned*"))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "cache"}
    assert {path.name for path in place.iterdir()} == {"devices.yaml", "m.onnx", "results"}


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "", " ", "y" * 65])
def test_names_that_are_no_line_are_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "devices.yaml").write_text(json.dumps({"devices": {name: {"transport": "local"}}}))
    code, out, err = bench(capsys, str(model(place / "m.onnx")), "--all")
    assert (code, out) == (4, "")
    assert "devices.yaml:1: " in err
    assert "cannot be a device's name" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("name", ["x; touch owned", "$(touch owned)", "a 'b' \"c\"", "a\nb", "z" * 200])
def test_models_of_any_name_are_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, out, _ = bench(capsys, str(model(place / f"{name}.onnx")))
    assert code == 0, out
    assert len(list((place / "results" / "night").glob("local--*.json"))) == 1
    assert not list(tmp_path.rglob("owned"))
