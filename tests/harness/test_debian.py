"""Debian's numpy becomes an archive: from packages made by hand, which an apt of ours brings."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from harness import debian
from harness.debian import Numpy
from harness.wheels import NoWheel

TRIPLET = "usr/lib/arm-linux-gnueabihf"
MODULES = "usr/lib/python3/dist-packages/numpy"
CONTENT = {
    "python3-numpy_1%3a1.24.2-1+deb12u1_armhf.deb": {
        f"{MODULES}/__init__.py": "code",
        f"{MODULES}/core/tests/test_core.py": "not needed",
        f"{MODULES}/__init__.pyi": "not needed",
        "usr/share/doc/python3-numpy/copyright": "not needed",
    },
    "libblas3_3.11-2_armhf.deb": {f"{TRIPLET}/blas/libblas.so.3.11": "blas"},
}

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that writes down how it is called and brings our packages; the folder of its calls."""
    shelf, tools = tmp_path / "shelf", tmp_path / "bin"
    shelf.mkdir()
    for name, files in CONTENT.items():
        root = tmp_path / "root" / name
        for place, text in files.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(text)
        if name.startswith("libblas3"):
            (root / TRIPLET / "blas" / "libblas.so.3").symlink_to("libblas.so.3.11")
        (root / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name.split('_')[0]}\nVersion: 1\nArchitecture: armhf\n"
        (root / "DEBIAN" / "control").write_text(
            f"{control}Maintainer: us <us@example.org>\nDescription: x\n"
        )
        subprocess.run(["dpkg-deb", "--build", str(root), str(shelf / name)], check=True, capture_output=True)
    tools.mkdir()
    script = f'echo "$@" >> {tmp_path}/calls\ncase "$*" in *" download "*) cp {shelf}/*.deb . ;; esac\n'
    (tools / "apt-get").write_text(f"#!/bin/sh\n{script}")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "shelf")
    return tmp_path


def test_modules_come_to_the_top_and_libraries_by_the_name_that_is_looked_for(
    apt: Path, tmp_path: Path
) -> None:
    found = debian.numpy("armv7l", "bookworm", tmp_path / "cache")
    assert isinstance(found, Numpy)
    assert found.version == "1.24.2"
    assert found.downloaded_bytes > 0
    with zipfile.ZipFile(found.path) as file:
        content = {name: file.read(name).decode() for name in file.namelist()}
    assert content == {"numpy/__init__.py": "code", "lib/libblas.so.3": "blas"}


def test_apt_touches_nothing_of_this_system_and_is_asked_once(apt: Path, tmp_path: Path) -> None:
    debian.numpy("armv7l", "bookworm", tmp_path / "cache")
    update, download = (apt / "calls").read_text().splitlines()
    for call in (update, download):
        words = call.split()
        assert "APT::Architectures=armhf" in words
        for key in ("Dir::State", "Dir::Cache", "Dir::State::status", "Dir::Etc::sourcelist"):
            (value,) = (word.partition("=")[2] for word in words if word.startswith(f"{key}="))
            assert Path(value).is_relative_to(tmp_path / "cache")
    assert debian.numpy("armv7l", "bookworm", tmp_path / "cache").__class__ is Numpy
    assert len((apt / "calls").read_text().splitlines()) == 2


def test_what_cannot_be_is_a_reason(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    known = "Debian's packages are not known for riscv64"
    assert debian.numpy("riscv64", "trixie", cache) == NoWheel(reason=known)
    for codename in ("", "book worm", "../x"):
        assert isinstance(debian.numpy("armv7l", codename, cache), NoWheel)
    (apt / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: The repository is gone' >&2\nexit 100\n")
    failed = debian.numpy("armv7l", "bookworm", cache)
    assert failed == NoWheel(reason="apt-get update failed: E: The repository is gone", final=False)
    (apt / "bin" / "apt-get").unlink()
    monkeypatch.setenv("PATH", str(apt / "bin"))
    missing = debian.numpy("armv7l", "bookworm", cache)
    assert isinstance(missing, NoWheel)
    assert "this machine has no apt-get" in missing.reason
