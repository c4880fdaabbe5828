"""Runs on disk: one folder per run, run.json and one record per cell, every write atomic."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import filelock

from harness.core import codec
from harness.core.errors import UsageError
from harness.core.types import Record, Run, RunInfo

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
T = TypeVar("T")


def utc_now() -> str:
    """The time now as ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_atomically(path: Path, text: str) -> None:
    """
    Replace the file whole: at any moment, and after a crash or on a full disk, it is the old one or the new.

    OSError, which names *path*, when it cannot be written; nothing is left beside it then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # before the new name: a crash must not leave that name without content
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder, and say this
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    def save_info(self, info: RunInfo) -> None:
        """Write run.json."""
        write_atomically(self.path / RUN_FILE, codec.dumps(info, indent=1) + "\n")

    def save(self, record: Record) -> None:
        """Write one cell's record; a record of the same cell is replaced."""
        write_atomically(self.path / f"{record.cell.id}.json", codec.dumps(record) + "\n")

    def read(self) -> Run:
        """The run with the records of its cells, in the order of its plan."""
        info = replace(_parse(RunInfo, self.path / RUN_FILE), name=self.path.resolve().name)
        paths = [self.path / f"{cell.id}.json" for cell in info.cells]
        return Run(info=info, records=tuple(_parse(Record, path) for path in paths if path.exists()))

    def discard(self) -> None:
        """Remove a run in which nothing was recorded; one with records is left alone."""
        if not self.read().records:
            (self.path / RUN_FILE).unlink()
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            self.path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this run for writing; UsageError when another process has it."""
        lock = filelock.FileLock(self.path / LOCK_FILE, timeout=0)
        try:
            with lock:
                yield
        except filelock.Timeout as error:
            raise UsageError(
                f"The run {self.path} is being written by another edgebench process.",
                hint="Wait for it, or give this run another name with --run.",
            ) from error


def _parse(cls: type[T], path: Path) -> T:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != codec.SCHEMA:
        raise UsageError(
            f"{path} has schema {found!r}; this edgebench reads schema {codec.SCHEMA}.",
            hint="See results/README.md for the history of the schema.",
        )
    return codec.from_json(cls, data, where=str(path))


def default_name(models: list[str]) -> str:
    """A run name that sorts by time: ``20261122T101500Z-digits_cnn``."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{re.sub(r'[^A-Za-z0-9._]+', '_', '+'.join(models))[:60]}"


def make_room(results: Path, name: str) -> Path | None:
    """
    Move an earlier run of this name aside (``NAME-1``, ``NAME-2``, ...); where it is now, if there was one.

    UsageError for a name that is no file name, and for a folder that holds something else than a run.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UsageError(f"{name!r} cannot be a run's name.", hint="Use letters, digits and . _ + - only.")
    path = results / name
    if not path.exists():
        return None
    if not (path / RUN_FILE).is_file():
        raise UsageError(f"{path} is there already and is no run.", hint="Give the run another name: --run.")
    number = 1
    while (aside := results / f"{name}-{number}").exists():
        number += 1
    with RunFolder(path).locked():
        path.rename(aside)
    return aside


def create(results: Path, name: str) -> RunFolder:
    """A new, empty run folder; UsageError when it cannot be made."""
    path = results / name
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"The run folder {path} cannot be made: {error.strerror}.") from error
    return RunFolder(path)


def find(results: Path, name: str) -> RunFolder:
    """The folder of a run, given by its name under *results* or by its path; UsageError if there is none."""
    for path in (results / name, Path(name)):
        if (path / RUN_FILE).is_file():
            return RunFolder(path)
    runs = sorted(path.parent.name for path in results.glob(f"*/{RUN_FILE}"))
    listed = f"Runs there: {', '.join(runs[-8:])}." if runs else "There are no runs there yet."
    raise UsageError(f"There is no run {name!r} in {results}.", hint=listed)
