"""One lab per test: a HOME of its own, a key, and what the test starts in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.transports import _ssh_auth, _ssh_config, ssh
from tests.ssh.servers import Lab, new_key, sshd


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Everything that the user's ssh would read is made for this test."""
    sshd()
    folder = Path(tempfile.mkdtemp(prefix="eb-ssh-"))  # short: a socket's path has 108 characters
    folder.chmod(0o755)  # an ordinary user passes through it to a home
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (folder / "work").mkdir(mode=0o777)
    (folder / "work").chmod(0o777)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(_ssh_config, "SYSTEM_CONFIG", folder / "none")  # this machine's may say anything
    monkeypatch.setattr(_ssh_config, "SYSTEM_KNOWN_HOSTS", ())
    monkeypatch.setattr(ssh, "SECRETS", _ssh_auth.Secrets())  # nobody has typed anything yet
    for name in [name for name in os.environ if name.startswith("EDGEBENCH_P")]:
        monkeypatch.delenv(name)
    for name in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    made = Lab(folder=folder, home=home, key=new_key(home / ".ssh" / "id_ed25519"))
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
