"""Runs on disk: nothing is overwritten, nothing half-written is read, two writers are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import store
from harness.core.errors import UsageError
from harness.core.types import Run
from tests.harness.fakes import info, record


def saved(tmp_path: Path) -> store.RunFolder:
    folder = store.create(tmp_path / "results", "night")
    folder.save_info(info())
    folder.save(record("int8"))
    return folder


def test_a_run_comes_back_in_the_order_of_its_plan(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    folder.save(record("fp32"))
    assert folder.read() == Run(info=info(), records=(record("fp32"), record("int8")))


def test_a_run_of_the_same_name_is_moved_aside_never_overwritten(tmp_path: Path) -> None:
    saved(tmp_path)
    assert store.make_room(tmp_path / "results", "night") == tmp_path / "results" / "night-1"
    second = store.create(tmp_path / "results", "night")
    assert list(second.path.iterdir()) == []
    assert store.find(tmp_path / "results", "night-1").read().records == (record("int8"),)


def test_a_record_is_replaced_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    folder.save(replace(record("int8"), reason="later"))
    assert [r.reason for r in folder.read().records] == ["later"]
    assert not list(folder.path.glob("*.part"))


def test_unknown_run_lists_what_is_there(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UsageError, match=r"no run 'nihgt'.*Runs there: night"):
        store.find(tmp_path / "results", "nihgt")


def test_a_path_is_as_good_as_a_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert store.find(tmp_path / "elsewhere", str(folder.path)).path == folder.path


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "a/b"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a run's name"):
        store.make_room(tmp_path, name)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    with pytest.raises(UsageError, match="is there already and is no run"):
        store.make_room(tmp_path, "precious")
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_a_run_that_was_moved_goes_by_its_folders_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    moved = folder.path.rename(folder.path.with_name("night-1"))
    assert store.RunFolder(moved).read().info.name == "night-1"


def test_a_cut_off_record_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder.path / f"{record('int8').cell.id}.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UsageError, match=r"int8.*cannot be read as JSON"):
        folder.read()


def test_another_schema_is_refused_by_number(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder.path / store.RUN_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(UsageError, match="has schema 99; this edgebench reads schema 1"):
        folder.read()


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    code = "import sys; from pathlib import Path; from harness.store import RunFolder\n"
    code += "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="being written by another"), folder.locked():
            pass
        other.communicate("")
    with folder.locked():
        pass


def test_discard_never_removes_a_record(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    folder.discard()
    assert folder.read().records == (record("int8"),)
    empty = store.create(tmp_path / "results", "empty")
    empty.save_info(info())
    empty.discard()
    assert not empty.path.exists()
