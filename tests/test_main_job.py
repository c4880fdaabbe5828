"""The main job as a user does it: real training, exporters, runtimes, agents, files and signals."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import store
from harness.core.types import Run

pytestmark = pytest.mark.xdist_group("main_job")  # one worker, so that one run serves all tests

ROOT = Path(__file__).resolve().parents[1]
OWN_TASK = ROOT / "docs" / "own_task.py"

UNSUPPORTED = '''
"""A model with an operator that not every exporter has."""
import torch
from torch import nn

LATENCY_ONLY = "no data: it only has to be exported"


class Rare(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


def model():
    return Rare()


def example_inputs():
    return (torch.eye(4)[None],)


def validation_loader():
    return [torch.eye(4)[None] + torch.rand(8, 4, 4, generator=torch.Generator().manual_seed(0))]
'''


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "harness", *words]


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "EDGEBENCH_CACHE": str(cache)}


def edgebench(cwd: Path, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*words), cwd=cwd, env=environment(cache), capture_output=True, text=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Run]:
    """One run of the README's own task: two recipes in three formats; its folder and what was stored."""
    cwd = tmp_path_factory.mktemp("finished")
    words = (
        "bench",
        "--model",
        str(OWN_TASK),
        "--recipe",
        "fp32",
        "--recipe",
        "int8",
        "--quick",
        "--run",
        "own",
    )
    done = edgebench(cwd, cache, *words)
    assert done.returncode == 0, done.stderr
    assert "measured 6 of 6 cells" in done.stdout
    assert done.stdout.rstrip().endswith("report.html")
    return cwd, store.find(cwd / "results", "own").read()


def test_the_readme_shows_the_task_that_this_test_runs() -> None:
    text = OWN_TASK.read_text()
    assert text in (ROOT / "README.md").read_text()
    assert len([line for line in text.splitlines() if line]) <= 30


def test_every_cell_is_measured_and_says_how(finished: tuple[Path, Run]) -> None:
    _, run = finished
    assert [r.status for r in run.records] == ["measured"] * 6
    for record in run.records:
        assert record.plan.quick, "a quick look is marked as one"
        timed = [b for b in record.blocks if b.kind == "latency"]
        assert len(timed) == record.plan.blocks
        assert all(len(b.values_ns) >= record.plan.min_iterations for b in timed)
        assert all(b.load_ns > 0 and b.first_inference_ns > 0 and b.cpu_ns > 0 for b in timed)
        assert all(b.settings["threads"].observed == 1 for b in timed)
        memory = [b for b in record.blocks if b.kind == "memory"]
        assert [m.name for m in memory[0].marks] == ["baseline", "loaded", "first_inference", "steady"]
        assert record.artifact is not None
        assert record.artifact.parity is not None
        assert record.artifact.score is not None
        assert record.artifact.score.values[0] > 0.9, "trained, and measured in its own runtime"
        assert record.runtime is not None


def test_every_report_renders_what_was_measured(finished: tuple[Path, Run], cache: Path) -> None:
    cwd, run = finished
    shown = {
        kind: edgebench(cwd, cache, "report", "own", "--to", kind)
        for kind in ("table", "markdown", "csv", "json")
    }
    for kind, done in shown.items():
        assert done.returncode == 0, done.stderr
        for record in run.records:
            assert record.cell.recipe in done.stdout, kind
    assert len(list(csv.DictReader(io.StringIO(shown["csv"].stdout)))) == 6
    assert json.loads(shown["json"].stdout)
    page = cwd / "page.html"
    assert edgebench(cwd, cache, "report", "own", "--to", "html", "-o", str(page)).returncode == 0
    assert "own_task" in page.read_text()


def test_a_second_build_comes_from_the_cache(finished: tuple[Path, Run], cache: Path) -> None:
    cwd, run = finished
    words = ("build", "--model", str(OWN_TASK), "--recipe", "fp32", "--recipe", "int8", "--json")
    done = edgebench(cwd, cache, *words)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert {f["sha256"] for f in files} == {r.artifact.sha256 for r in run.records if r.artifact}
    assert all(f["cached"] for f in files)
    code = "import sys; from harness.cli import run; run(sys.argv[1:]); print('torch' in sys.modules)"
    light = subprocess.run(
        [sys.executable, "-c", code, *words, "--cache", str(cache)], cwd=ROOT, capture_output=True, text=True
    )
    assert light.stdout.rstrip().endswith("False"), "nothing heavy is imported for what is already built"


def wait_for(process: subprocess.Popen[str], ready: Any) -> None:
    """Until *ready*() holds; fails when the process ends before, so it cannot wait for ever."""
    while not ready():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        time.sleep(0.02)


def test_ctrl_c_loses_nothing_and_resume_goes_on(
    finished: tuple[Path, Run], cache: Path, tmp_path: Path
) -> None:
    folder = store.RunFolder(tmp_path / "results" / "cut")
    words = ("bench", "--model", str(OWN_TASK), "--quick", "--blocks", "40", "--run", "cut")

    def blocks() -> int:
        if not (folder.path / store.RUN_FILE).exists():
            return 0
        return sum(len(record.blocks) for record in folder.read().records)

    with subprocess.Popen(
        argv(*words),
        cwd=tmp_path,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(process, lambda: blocks() >= 4)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "Go on with: edgebench bench --resume cut" in said
    assert "Traceback" not in said
    kept = {(r.cell.id, b.kind, b.index): b for r in folder.read().records for b in r.blocks}
    assert len(kept) >= 4

    # Fewer blocks to go: the test is about going on, not about waiting.
    for path in folder.path.glob("*.json"):
        data = json.loads(path.read_text())
        data["plan"]["blocks"] = max(4, max(k[2] for k in kept) + 1)
        path.write_text(json.dumps(data))
    done = edgebench(tmp_path, cache, "bench", "--resume", "cut")
    assert done.returncode == 0, done.stderr
    assert "measured 3 of 3 cells" in done.stdout
    after = {(r.cell.id, b.kind, b.index): b for r in folder.read().records for b in r.blocks}
    assert all(after[key] == block for key, block in kept.items()), "what was measured was not run again"


def test_an_operator_that_a_runtime_lacks_is_a_row_and_the_others_go_on(tmp_path: Path, cache: Path) -> None:
    task = tmp_path / "rare.py"
    task.write_text(UNSUPPORTED)
    done = edgebench(tmp_path, cache, "bench", "--model", str(task), "--quick", "--run", "rare", "--json")
    run = store.find(tmp_path / "results", "rare").read()
    assert len(run.records) == 3
    outcomes = {r.cell.format: (r.status, r.reason or "") for r in run.records}
    status, reason = outcomes.pop("executorch")
    assert (status, "aten.abs" in reason) == ("unsupported_op", True), reason
    assert {status for status, _ in outcomes.values()} == {"measured"}, outcomes
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_files_made_elsewhere_are_measured_as_they_are(
    finished: tuple[Path, Run], cache: Path, tmp_path: Path
) -> None:
    _, run = finished
    paths = []
    for record in run.records:
        if record.cell.recipe == "int8" and record.artifact:
            source = Path(record.artifact.path)
            paths.append(tmp_path / f"mine{source.suffix}")
            paths[-1].write_bytes(source.read_bytes())
    done = edgebench(tmp_path, cache, "bench", *map(str, paths), "--quick", "--run", "files")
    assert done.returncode == 0, done.stderr
    records = store.find(tmp_path / "results", "files").read().records
    assert sorted(r.cell.format for r in records) == ["executorch", "onnx", "tflite"]
    assert {(r.status, r.cell.model) for r in records} == {("measured", "mine")}
    assert all(r.artifact and r.artifact.score is None and r.artifact.score_reason for r in records)
    renamed = tmp_path / "wrong.onnx"
    renamed.write_bytes(next(p for p in paths if p.suffix == ".tflite").read_bytes())
    refused = edgebench(tmp_path, cache, "bench", str(renamed))
    assert refused.returncode == 4
    assert "wrong.onnx" in refused.stderr
    assert "not an ONNX model but a TensorFlow Lite model" in refused.stderr


def test_a_task_file_that_raises_is_one_sentence(tmp_path: Path, cache: Path) -> None:
    task = tmp_path / "broken.py"
    task.write_text('"""Broken."""\nimport torch\n\nraise RuntimeError("no such data")\n')
    done = edgebench(tmp_path, cache, "bench", "--model", str(task), "--quick")
    assert done.returncode == 4
    assert "broken.py" in done.stderr
    assert "no such data" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").glob("*")), "no run is left behind"


def test_devices_answer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "devices", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["device"], row["answers"]) == ("local", True)
    assert set(row["runtimes"]) == {"executorch", "onnx", "tflite"}


def test_a_build_that_dies_is_a_row_and_the_other_model_goes_on(
    finished: tuple[Path, Run], cache: Path, tmp_path: Path
) -> None:
    task = tmp_path / "dies.py"
    task.write_text(OWN_TASK.read_text() + "\n\nimport os\ndef model():\n    os._exit(9)\n")
    words = ("bench", "--model", str(task), "--model", str(OWN_TASK), "--format", "onnx", "--quick")
    done = edgebench(tmp_path, cache, *words, "--run", "dies")
    records = store.find(tmp_path / "results", "dies").read().records
    assert {r.cell.model: r.status for r in records} == {"dies": "build_failed", "own_task": "measured"}
    assert "killed or crashed" in (records[0].reason or "")
    assert done.returncode == 2


def test_resume_refuses_a_changed_file_and_other_choices(
    finished: tuple[Path, Run], cache: Path, tmp_path: Path
) -> None:
    _, run = finished
    source = next(r.artifact.path for r in run.records if r.artifact and r.cell.format == "onnx")
    mine = tmp_path / "mine.onnx"
    mine.write_bytes(Path(source).read_bytes())
    assert edgebench(tmp_path, cache, "bench", "mine.onnx", "--quick", "--run", "r").returncode == 0
    refused = edgebench(tmp_path, cache, "bench", "--resume", "r", "--threads", "2")
    assert (refused.returncode, "--threads does not go with --resume" in refused.stderr) == (4, True)
    mine.write_bytes(mine.read_bytes() + b"\n")
    refused = edgebench(tmp_path, cache, "bench", "--resume", "r")
    assert (refused.returncode, "no longer the same" in refused.stderr) == (4, True)
