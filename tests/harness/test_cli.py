"""The command line: one clear sentence and exit code 4 for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What standard error says when *argv* ends with exit code 4, without a traceback."""
    assert cli.run(list(argv)) == 4
    captured = capsys.readouterr()
    assert captured.out == "", "standard output is for results"
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) <= 2, "one sentence, and one line with what to try"
    return captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bnech"], "There is no command 'bnech'.\n  Did you mean 'bench'?"),
        (["bench"], "There is nothing to measure."),
        (["bench", "--modle", "digits_cnn"], "No such option '--modle'"),
        (["bench", "--model", "digits_cnn", "--threads", "0"], "0 is not in the range"),
        (
            ["bench", "--model", "digits_cnn", "--recipe", "itn8"],
            "There is no recipe 'itn8'.\n  Did you mean 'int8'?",
        ),
        (
            ["bench", "--model", "digits_cnn", "--format", "tflit"],
            "There is no format 'tflit'.\n  Did you mean 'tflite'?",
        ),
        (["bench", "--model", "digits_cn"], "'digits_cn'"),
        (["bench", "--model", "nowhere/task.py"], "nowhere/task.py"),
        (["bench", "nowhere.onnx"], "nowhere.onnx"),
        (["bench", "--model", "digits_cnn", "--device", "pi5"], "There is no device 'pi5'."),
        (["bench", "--model", "digits_cnn", "--fleet", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (
            ["bench", "--model", "digits_cnn", "--recipe", "fp32", "--recipe", "fp32"],
            "Two of the recipes are called",
        ),
        (["bench", "--resume", "never"], "There is no run 'never'"),
        (["build"], "No model was given."),
        (["report", "never"], "There is no run 'never'"),
        (["list", "pases"], "'pases'"),
        (["list"], "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_4(
    argv: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    assert said in refused(capsys, *argv)
    assert not list(tmp_path.glob("results/*")), "what cannot be measured leaves no run behind"


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, b"\x1c\0\0\0TFL3" + b"\0" * 64])
@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pte"])
def test_unreadable_model_files_are_refused(
    suffix: str,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert f"model{suffix}" in refused(capsys, "bench", str(path), "--cache", str(tmp_path / "cache"))


def test_lists_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("passes", "formats", "models", "recipes", "transports", "reports"):
        assert cli.run(["list", kind]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        assert all(len(line.split(None, 1)) == 2 for line in lines), kind
        assert cli.run(["list", kind, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len(lines)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("bench", "build", "devices", "list", "report"))
