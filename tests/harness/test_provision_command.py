"""``edgebench provision``: what it prints, what it returns."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from harness import wheels
from harness.cli import run
from tests.harness import wheelhouse


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two devices of this machine, and wheels for one runtime; the options that name them."""
    monkeypatch.setattr(wheels, "host_version", lambda _: None)
    house = wheelhouse.alone(monkeypatch, tmp_path / "house")
    for name in ("numpy", "onnxruntime"):
        wheelhouse.make(house, name, "99.1", platform=f"manylinux2014_{platform.machine()}")
    entries = [f"  d{i}: {{transport: local, workdir: {tmp_path / f'd{i}'}}}" for i in (1, 2)]
    path = tmp_path / "devices.yaml"
    path.write_text("\n".join(["devices:", *entries]))
    return ["--fleet", str(path), "--cache", str(tmp_path / "cache")]


def test_devices_are_provisioned_and_cleared(
    fleet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["provision", "d*", "--runtime", "onnxruntime", "--json", *fleet]
    assert run(argv) == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert [row["device"] for row in first] == ["d1", "d2"]
    assert all(row["runtimes"] == {"onnxruntime": "99.1"} and row["pushed_bytes"] > 0 for row in first)
    assert "d1: onnxruntime 99.1 works there" in captured.err
    assert run(argv) == 0
    captured = capsys.readouterr()
    assert [row["pushed_bytes"] for row in json.loads(captured.out)] == [0, 0]
    assert "d2: all of it is there: 0 bytes sent" in captured.err
    assert run(["provision", "d1", "d2", "--remove", *fleet]) == 0
    assert "nothing of ours is left" in capsys.readouterr().out
    assert not (tmp_path / "d1").exists()
    assert not (tmp_path / "d2").exists()


def test_what_is_not_ours_is_never_removed(
    fleet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["provision", "d1", "--runtime", "onnxruntime", *fleet]) == 0
    (tmp_path / "d1" / "thesis.txt").write_text("mine")
    (tmp_path / "d2").mkdir()
    (tmp_path / "d2" / "photo.jpg").write_text("mine")
    capsys.readouterr()
    assert run(["provision", "d1", "d2", "--remove", *fleet]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "not ours, and still there: thesis.txt" in out
    assert "(photo.jpg); choose a folder of its own." in out
    assert [path.name for path in (tmp_path / "d1").iterdir()] == ["thesis.txt"]
    assert [path.name for path in (tmp_path / "d2").iterdir()] == ["photo.jpg"]


def test_what_is_missing_is_in_the_table_and_nothing_at_all_is_a_failure(
    fleet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["provision", "d1", "--runtime", "litert", *fleet]) == 2
    out = capsys.readouterr().out
    assert "ai-edge-litert has no wheel for Python" in " ".join(out.split())


def test_an_unknown_runtime_is_a_usage_error(fleet: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["provision", "d1", "--runtime", "onnx", *fleet]) == 4
    assert "Known: executorch, litert, onnxruntime." in capsys.readouterr().err
