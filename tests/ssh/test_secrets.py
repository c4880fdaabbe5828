"""No secret is shown to anybody: not in a process list, a log, an error, or the supervisor's folder."""

from __future__ import annotations

import logging
import subprocess
import threading
from pathlib import Path

import pytest

from harness.core import prompting
from harness.core.errors import DeviceError
from harness.transports import ssh
from harness.transports._ssh_auth import Secrets
from harness.transports._ssh_config import route
from tests.ssh.servers import Lab, need, new_key

SECRET = "correct-horse-battery"


def command_lines(over: threading.Event, seen: set[bytes]) -> None:
    """Every command line that any process has, until *over*."""
    while not over.wait(0.01):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes())
            except OSError:
                continue  # it ended


def test_secrets_appear_nowhere(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("openssl")
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=SECRET, capture_output=True, text=True, check=True
    )
    server = lab.ordinary("/bin/sh", hashed.stdout.strip(), "PasswordAuthentication yes")
    (server.folder / "authorized_keys").write_text("")
    locked = new_key(lab.folder / "locked", passphrase="other")
    monkeypatch.setenv("EDGEBENCH_PASSWORD_PI5", SECRET)
    monkeypatch.setenv("EDGEBENCH_PASSPHRASE", SECRET)
    caplog.set_level(logging.DEBUG)
    over, seen = threading.Event(), set[bytes]()
    looking = threading.Thread(target=command_lines, args=(over, seen))
    looking.start()
    transport = ssh.connect(lab.device(server, identity=str(locked)))
    job = ["/bin/sh", "-c", "env"]
    with transport.stream(job, env={"A": "1"}, timeout_s=10) as stream:
        lines = list(stream)
    work = Path(transport.workdir)
    transport.close()
    over.set()
    looking.join()
    assert any(b"sshd" in line for line in seen)
    assert not [line for line in seen if SECRET.encode() in line]
    assert "A=1" in lines
    assert not [line for line in lines if SECRET in line], "an agent's environment is not ours"
    assert SECRET not in caplog.text
    assert not [path for path in work.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_wrong_password_is_not_repeated_in_the_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    server = lab.ordinary("/bin/sh", "*", "PasswordAuthentication yes")
    (server.folder / "authorized_keys").write_text("")
    monkeypatch.setenv("EDGEBENCH_PASSWORD_PI5", SECRET)
    with pytest.raises(DeviceError, match="a password") as caught:
        ssh.connect(lab.device(server))
    assert SECRET not in repr(caught.value)
    assert SECRET not in str(caught.value)


def test_what_was_typed_is_asked_once_and_not_shown(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return SECRET

    monkeypatch.setattr(prompting, "typed", answer)
    target = route(lab.device(lab.server()))[0]
    secrets = Secrets()
    assert secrets.password(target) == secrets.password(target) == SECRET
    assert len(asked) == 1
    assert SECRET not in repr(secrets)


@pytest.mark.parametrize("name", ["x; touch owned", "../../x", "a'b\"c", "$(touch owned)", "-rf", "pi 5\n6"])
def test_names_that_a_shell_would_read_do_no_harm(lab: Lab, name: str) -> None:
    server = lab.server()
    transport = ssh.connect(lab.device(server, name, workdir=str(lab.folder / "work" / "w|touch owned")))
    with transport.stream(["/bin/echo", name], env={}, timeout_s=10) as stream:
        assert list(stream) == name.split("\n")
    transport.close()
    assert not list(lab.folder.rglob("owned"))
