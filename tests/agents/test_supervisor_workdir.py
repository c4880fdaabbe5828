"""Whose folder a workdir is: nothing of somebody else's is used, written to or removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import device_agents
from harness.core.errors import DeviceError, SupervisorError
from harness.core.types import Device
from harness.transports import local
from harness.transports._supervisor import Supervisor
from tests.agents.links import OWNER, Links

MARKER = ".edgebench-folder"
EARLIER = ("files", "parts", "jobs", "links")


def device(workdir: Path | str) -> Supervisor:
    return Supervisor(Links(), workdir=str(workdir), name="pi5", patience_s=30.0, answer_s=30.0)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(workdir: Path | str) -> str:
    there = device(workdir)
    with pytest.raises(SupervisorError) as caught:
        there.call("hello")  # and never a remove: where the refusal is broken, it would be carried out
    there.close()
    assert caught.value.kind == "bad_request"
    assert "choose a folder of its own" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "cat.jpg").write_bytes(b"cat")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_of_somebody_else_is_refused_untouched(photos: Path) -> None:
    before = tree(photos)
    assert "(files, notes.txt)" in refused(photos)
    assert tree(photos) == before


def test_a_folder_that_has_some_of_our_names_is_still_not_ours(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    refused(tmp_path)
    assert tree(tmp_path) == ["files"]


@pytest.mark.parametrize("place", ["~", "~/", "{home}", "{home}/..", "{link}"])
def test_the_home_folder_and_what_is_above_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = tmp_path / "home" / "ann"
    home.mkdir(parents=True)  # an empty one, too
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    assert "is the home folder" in refused(place.format(home=home, link=tmp_path / "link"))
    assert tree(tmp_path) == ["home", "home/ann", "link"]


@pytest.mark.parametrize(
    ("workdir", "home", "holds"),
    [
        ("/", "/root", True),
        ("/", "/", True),
        ("/home", "/home/ann", True),
        ("/home/ann", "/home/ann", True),
        ("/home/an", "/home/ann", False),
        ("/home/ann/.edgebench", "/home/ann", False),
        ("/srv", "/", False),
    ],
)
def test_what_contains_the_home_folder(workdir: str, home: str, holds: bool) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import files; print(files.contains(*sys.argv[2:]))"
    agents = str(Path(device_agents.__file__).parent)
    argv = [sys.executable, "-I", "-c", code, agents, workdir, home]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"{holds}\n"


def test_a_folder_below_home_is_made_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = device("~/.edgebench")
    assert there.workdir == str(tmp_path / ".edgebench")
    assert Path(there.workdir, MARKER).exists()
    assert there.call("remove", everything=True)["stay"] == []
    there.close()
    assert tree(tmp_path) == []


def test_an_empty_folder_becomes_ours(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    there = device(work)
    there.call("hello")
    assert (work / MARKER).exists()
    assert there.call("remove", everything=True)["stay"] == []
    there.close()
    assert tree(tmp_path) == []


def test_the_root_of_a_disk_is_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    there = device(tmp_path)
    assert there.call("remove", everything=True)["stay"] == []
    there.close()
    assert tree(tmp_path) == ["lost+found"]


def test_a_folder_that_an_earlier_version_made_is_ours(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in (*EARLIER, "site"):
        (work / name).mkdir(parents=True)
    for name in ("lock", "restore.json.new", "janitor.json.123"):
        (work / name).touch()
    there = device(work)
    assert there.call("remove", everything=True)["stay"] == []
    there.close()
    assert tree(tmp_path) == []


def test_what_others_put_into_our_folder_stays(tmp_path: Path) -> None:
    there = device(tmp_path / "work")
    there.call("lease", action="take", owner=OWNER, period_s=600)
    work = Path(there.workdir)
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter.txt").write_text("mine")
    (work / "b.txt").write_text("mine")
    (work / "site").mkdir()
    assert there.call("remove", everything=True)["stay"] == ["b.txt", "thesis"]
    assert there.call("lease", action="release") == {"held": False}
    there.close()
    assert tree(work) == ["b.txt", "thesis", "thesis/chapter.txt"]
    refused(work)


def test_a_link_among_our_names_is_removed_and_not_followed(photos: Path, tmp_path: Path) -> None:
    there = device(tmp_path / "work")
    Path(there.workdir, "site").symlink_to(photos)
    there.call("remove", everything=True)
    there.close()
    assert tree(photos) == ["files", "files/cat.jpg", "notes.txt"]
    assert not (tmp_path / "work").exists()


def test_only_site_is_unpacked_into_and_removed_by_name(tmp_path: Path) -> None:
    there = device(tmp_path / "work")
    Path(there.workdir, "thesis").write_text("mine")
    there.call("remove", names=["thesis"])
    assert Path(there.workdir, "thesis").exists()
    with pytest.raises(SupervisorError, match="not in site"):
        there.call("unpack", name="x.zip", into="thesis")
    there.close()


def test_this_machine_refuses_a_folder_of_somebody_else(photos: Path) -> None:
    before = tree(photos)
    with pytest.raises(DeviceError, match="choose a folder of its own"):
        local.connect(Device(name="here", transport="local", options={"workdir": str(photos)}))
    assert tree(photos) == before


def test_this_machine_keeps_its_folder_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cache_dir", lambda: tmp_path)
    (tmp_path / "device" / "files").mkdir(parents=True)  # an earlier version left it
    here = local.connect(Device(name="here", transport="local", options={}))
    assert here.call("hello")["workdir"] == os.fspath(tmp_path / "device")
    here.close()
