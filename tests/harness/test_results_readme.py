"""results/README.md says all that is in a record, and what it shows works on records as they are stored."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core import codec, types
from harness.store import RunFolder
from tests import records

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
STORED = (
    types.RunInfo,
    types.Record,
    types.Cell,
    types.Plan,
    types.Artifact,
    types.TensorSpec,
    types.Parity,
    types.Score,
    types.StepReport,
    types.LayerChange,
    types.Runtime,
    types.Block,
    types.MemoryMark,
    types.Setting,
    types.Incident,
)
QUERIES = re.findall(r"^jq (-\w) '(.+?)' results/demo/\*--\*\.json$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/demo as the store writes it; one cell has failed."""
    results = tmp_path_factory.mktemp("results")
    run = records.demo_run(samples=20, blocks=2)
    folder = RunFolder(results / "demo")
    folder.path.mkdir()
    folder.save_info(run.info)
    for record in run.records[1:]:
        folder.save(record)
    folder.save(records.failed(run.records[0].cell, "timeout", "slow"))
    return results


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.__name__)
def test_every_key_that_is_stored_is_explained(kind: type) -> None:
    named = set(re.findall(r"`(\w+)`", README))
    assert {f.name for f in dataclasses.fields(kind)} - named == set()


def test_every_status_is_explained_and_no_other() -> None:
    section = README.split("| `status` | what happened |")[1].split("#### `plan`")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == types.STATUSES


def test_the_history_ends_with_the_schema_that_is_written() -> None:
    versions = [int(v) for v in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)]
    assert versions == list(range(1, codec.SCHEMA + 1))
    assert f"writes and reads schema {codec.SCHEMA}." in README


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
@pytest.mark.parametrize(("option", "query"), QUERIES)
def test_the_jq_examples_answer(stored: Path, option: str, query: str) -> None:
    paths = sorted(map(str, stored.glob("demo/*--*.json")))
    done = subprocess.run(["jq", option, query, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if "requested" in query:
        assert done.stdout == ""  # every setting of the builder was taken
    else:
        assert len(done.stdout.splitlines()) == 12


def test_there_are_jq_examples() -> None:
    assert len(QUERIES) == README.count("\njq ") == 5


def test_the_python_example_answers(stored: Path) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    code = code.replace('Path("results")', f"Path({str(stored)!r})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pruned_int8" in done.stdout
    assert len(done.stdout.splitlines()) == 13
