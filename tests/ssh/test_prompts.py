"""Prompts of the real command at a terminal: Ctrl-C, one question per key, three tries."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.core import prompting
from harness.transports._ssh_auth import TRIES
from tests.ssh.servers import Lab, new_key

LIMIT_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A command with a terminal of its own, and what came on it."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = os.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.child = subprocess.Popen(
            [sys.executable, "-m", "harness", *argv],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - it only calls ioctl
        )
        self.seen = ""

    def until(self, text: str, times: int = 1) -> None:
        """Read until *text* was seen that often."""
        self._read(lambda: self.seen.count(text) >= times)
        assert self.seen.count(text) >= times, self.seen

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def exit_code(self) -> int:
        self._read(lambda: self.child.poll() is not None)
        return self.child.wait(LIMIT_S)

    def _read(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not done() and time.monotonic() < deadline:
            ended = self.child.poll() is not None
            self.drain(0.1)
            if ended:
                return

    def drain(self, wait_s: float = 0.0) -> None:
        while select.select([self.master], [], [], wait_s)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")
            wait_s = 0.0

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait()
        os.close(self.slave)
        os.close(self.master)


Run = Callable[..., Terminal]


@pytest.fixture
def run() -> Iterator[Run]:
    made: list[Terminal] = []

    def start(*argv: str) -> Terminal:
        made.append(Terminal(*argv))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


@pytest.fixture
def locked_fleet(lab: Lab) -> Path:
    """Two devices that want the same locked key."""
    locked = new_key(lab.folder / "locked", passphrase="hunter2")
    servers = [lab.server(), lab.server()]
    entries = {}
    for name, server in zip(("one", "two"), servers, strict=True):
        server.authorize(locked)
        entries[name] = {"transport": "ssh", **lab.device(server, name, identity=str(locked)).options}
    path = lab.folder / "devices.yaml"
    path.write_text(json.dumps({"devices": entries}))
    return path


@pytest.mark.parametrize(
    "verb", [["devices"], ["doctor", "one", "two"], ["provision", "one", "two"], "bench"]
)
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_the_first_wish_to_stop_ends_a_prompt(
    lab: Lab, locked_fleet: Path, run: Run, verb: list[str] | str, how: str
) -> None:
    results = lab.folder / "results"
    bench = ["bench", "--model", "digits_cnn", "--device", "one", "--device", "two", "--out", str(results)]
    argv = bench if isinstance(verb, str) else verb
    terminal = run(*argv, "--fleet", str(locked_fleet))
    terminal.until("Passphrase of")
    if how == "Ctrl-C":
        terminal.type("\x03")
    else:
        os.kill(terminal.child.pid, signal.SIGTERM)
    assert terminal.exit_code() == 130
    terminal.drain()
    assert "stopped" in terminal.seen
    assert terminal.seen.count("Passphrase of") == 1, "nobody is asked after that"
    assert termios.tcgetattr(terminal.slave)[3] == terminal.before[3], "what is typed is shown again"
    assert not results.exists()


def test_one_key_is_asked_for_once(locked_fleet: Path, run: Run) -> None:
    terminal = run("devices", "--json", "--fleet", str(locked_fleet))
    terminal.until("Passphrase of")
    terminal.type("hunter3\n")
    terminal.until("That is not it (2 of 3)")
    terminal.type("hunter2\n")
    assert terminal.exit_code() == 0, terminal.seen
    terminal.drain()
    assert terminal.seen.count("Passphrase of") == 2
    assert terminal.seen.count('"answers": true') >= 2
    assert "hunter" not in terminal.seen


def test_three_wrong_passphrases_are_enough(locked_fleet: Path, run: Run) -> None:
    terminal = run("devices", "--json", "--fleet", str(locked_fleet))
    for number in range(1, TRIES + 1):
        terminal.until("Passphrase of", number)
        terminal.type("hunter3\n")
    assert terminal.exit_code() == 2
    terminal.drain()
    assert terminal.seen.count("Passphrase of") == TRIES
    assert terminal.seen.count("its passphrase is wrong") == 2
    assert "ssh-copy-id" not in terminal.seen
    assert "right passphrase" in terminal.seen


def test_work_in_parallel_keeps_its_order_and_raises_its_errors() -> None:
    assert prompting.in_parallel(lambda n: n * n, range(40)) == [n * n for n in range(40)]
    assert prompting.in_parallel(str, []) == []
    with pytest.raises(ZeroDivisionError):
        prompting.in_parallel(lambda n: 1 // n, [1, 0, 2])


def test_a_thread_that_nobody_serves_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "told"

    monkeypatch.setattr(prompting, "typed", answer)
    told: list[str | None] = []
    thread = threading.Thread(target=lambda: told.append(prompting.secret("Who? ")))
    thread.start()
    thread.join()
    assert (told, asked) == ([None], [])
    assert prompting.in_parallel(prompting.secret, ["Who? "]) == ["told"]
