"""Wheels made by hand, in a folder that pip takes for all there is."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"


def make(
    folder: Path,
    name: str,
    version: str,
    *,
    python: str = PYTHON,
    platform: str = "manylinux2014_x86_64",
    files: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
) -> Path:
    """One wheel; without *files* it is a package that can be imported and does nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_")
    path = folder / f"{stem}-{version}-{python}-{python}-{platform}.whl"
    info = f"{stem}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    tag = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {python}-{python}-{platform}\n"
    with zipfile.ZipFile(path, "w") as file:
        for place, text in (files or {f"{stem}/__init__.py": "", f"{stem}/interpreter.py": ""}).items():
            file.writestr(place, text)
        file.writestr(f"{info}/METADATA", f"{metadata}\n")
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/RECORD", "")
    return path


def alone(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """From now on pip knows these wheels and no index."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder
