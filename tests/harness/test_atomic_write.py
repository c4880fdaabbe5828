"""write_atomically: whatever goes wrong and whoever looks, the file is the old one or the new one, whole."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.store import write_atomically

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "old\n", "new\n" * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with something in it, alone in its folder."""
    path = tmp_path / "run" / "record.json"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


def beside(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir() if other != path]


def test_who_has_the_old_file_open_keeps_it_whole(path: Path) -> None:
    with path.open() as reader:
        write_atomically(path, NEW)
        assert reader.read() == OLD
    assert path.read_text() == NEW
    assert beside(path) == []


@dataclass(frozen=True, slots=True)
class Synced:
    """What one fsync flushed, and what the file was called by then."""

    kind: str
    size_bytes: int
    content: str  # of the target at that moment


def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between any two of these steps leaves the old file or the new one."""
    seen: list[Synced] = []

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        assert Path(f"/proc/self/fd/{descriptor}").resolve().is_relative_to(path.parent)
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "file"
        seen.append(Synced(kind, found.st_size if kind == "file" else 0, path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, NEW)
    assert seen == [Synced("file", len(NEW), OLD), Synced("folder", 0, NEW)]


def test_a_new_file_comes_about_the_same_way(tmp_path: Path) -> None:
    write_atomically(tmp_path / "first.json", NEW)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"first.json": NEW}


def raiser(error: BaseException, kind: Callable[[int], bool]) -> Callable[[int], None]:
    """An fsync that fails for the descriptors of this kind."""

    def fsync(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise error

    return fsync


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(os, "fsync", raiser(error, stat.S_ISREG))
    with pytest.raises(type(error)):
        write_atomically(path, NEW)
    assert path.read_text() == OLD
    assert beside(path) == []


def test_text_that_cannot_be_written_leaves_nothing(path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, NEW + "\ud800")
    assert path.read_text() == OLD
    assert beside(path) == []


def test_a_file_system_that_cannot_sync_folders_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.EINVAL, "Invalid argument"), stat.S_ISDIR))
    write_atomically(path, NEW)
    assert path.read_text() == NEW


def test_another_failure_to_sync_the_folder_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.EIO, "Input/output error"), stat.S_ISDIR))
    with pytest.raises(OSError, match=r"Input/output error.*record\.json"):
        write_atomically(path, NEW)


def test_no_descriptor_stays_open(path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    write_atomically(path, NEW)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


VERSIONS = 40
WORDS = 200_000
#: Reads until it has met so many versions; every text must be one number, so many times.
READER = f"""
import sys
from pathlib import Path
versions = set()
while len(versions) < {VERSIONS}:
    words = Path(sys.argv[1]).read_text().split()
    if len(words) != {WORDS} or len(set(words)) != 1:
        sys.exit(f"{{len(words)}} words of {{len(set(words))}} versions")
    versions.add(words[0])
"""


def test_a_reader_never_sees_half_a_file(path: Path) -> None:
    def version(number: int) -> str:
        return f"{number} " * WORDS

    path.write_text(version(0))
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stderr=subprocess.PIPE, text=True
    ) as reader:
        try:
            number = 0
            while reader.poll() is None:
                number += 1
                write_atomically(path, version(number))
        finally:
            reader.kill()
        _, errors = reader.communicate()
    assert reader.returncode == 0, errors
    assert number >= VERSIONS - 1


#: Writes little, then more than there is room for; tells the error and what is there then.
FULL = """
import json, os, sys
from pathlib import Path
from harness.store import write_atomically
path = Path(sys.argv[1])
write_atomically(path, "old")
try:
    write_atomically(path, "new" * 100_000)
except OSError as error:
    told = [error.errno, error.filename]
    print(json.dumps([*told, path.read_text(), os.listdir(path.parent)]))
"""


def full(path: Path, *before: str, **options: Any) -> list[Any]:
    argv = [*before, sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


def test_a_file_that_may_not_grow_keeps_its_old_content(path: Path) -> None:
    limit = (100_000, 100_000)
    told = full(path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert told == [errno.EFBIG, str(path), "old", [path.name]]


def test_a_full_disk_keeps_its_old_content(tmp_path: Path) -> None:
    """On a file system of 64 KiB, mounted where only the child sees it."""
    unshare = [shutil.which("unshare") or "unshare", "--mount", *([] if os.geteuid() == 0 else ["-r"])]
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    try:
        subprocess.run([*unshare, *mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system lets us mount nothing: {error}")
    inside = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', str(tmp_path)]
    assert full(tmp_path / "r.json", *inside) == [errno.ENOSPC, str(tmp_path / "r.json"), "old", ["r.json"]]
    assert list(tmp_path.iterdir()) == []  # it was not our disk
