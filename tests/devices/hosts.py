"""A host: a user's home with a devices.yaml, from which edgebench is run as the program that it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.places import cache_dir
from harness.core.types import Record, Run
from harness.store import RunFolder

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    exit_code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Host:
    """One user on this machine; *home* is theirs."""

    home: Path

    def knows(self, lines: Sequence[str]) -> None:
        """Make these the lines of its known_hosts."""
        folder = self.home / ".ssh"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "known_hosts").write_text("".join(f"{line}\n" for line in lines))

    def has_devices(self, devices: Mapping[str, Mapping[str, Any]]) -> None:
        """Write its devices.yaml; JSON is YAML."""
        (self.home / "devices.yaml").write_text(json.dumps({"devices": devices}))

    @property
    def results(self) -> Path:
        """Where its runs are."""
        return self.home / "results"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start ``edgebench WORDS``; its output is in files of its home."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SSH_")}
        environment |= {"HOME": str(self.home), "EDGEBENCH_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT)}
        with (self.home / "out").open("wb") as out, (self.home / "err").open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "harness", *words],
                cwd=self.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )

    def end(self, child: subprocess.Popen[str], *, timeout_s: float = 120.0) -> Done:
        """Wait for a command that start() began."""
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise AssertionError(f"it did not end within {timeout_s:g} s; {self._said()}") from None
        return Done(child.returncode, (self.home / "out").read_text(), (self.home / "err").read_text())

    def run(self, *words: str, timeout_s: float = 120.0) -> Done:
        """Run ``edgebench WORDS`` to its end."""
        return self.end(self.start(*words), timeout_s=timeout_s)

    def _said(self) -> str:
        return f"it said: {(self.home / 'out').read_text()} {(self.home / 'err').read_text()}"

    def read(self, name: str) -> Run:
        """A run as it is on disk."""
        return RunFolder(self.results / name).read()

    def record(self, name: str) -> Record:
        """The record of a run with one cell."""
        (record,) = self.read(name).records
        return record

    def blocks(self, name: str) -> int:
        """How many blocks of the only cell of a run are stored by now."""
        if not (self.results / name / "run.json").exists():
            return 0
        return sum(len(record.blocks) for record in self.read(name).records)
