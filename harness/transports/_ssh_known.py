"""known_hosts files: which keys a host may show, and how a new one is written down."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import DeviceError
from harness.transports._ssh_config import Target

if TYPE_CHECKING:
    import paramiko


class HostKeyError(DeviceError):
    """A host shows a key that is not the one we know; never connected to, never tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A public key of a host: *blob* is what stands in known_hosts after its *type*, decoded."""

    type: str  # e.g. ssh-ed25519
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """``SHA256:…`` as ssh-keygen -l prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.type} {self.fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a known_hosts file."""

    path: Path
    line: int  # from 1
    names: str  # patterns with commas, or one hashed name
    revoked: bool
    key: HostKey

    def is_for(self, name: str) -> bool:
        """Whether *name* (``host`` or ``[host]:port``) is meant: exact, by wildcard or by hash."""
        if self.names.startswith("|1|"):
            from paramiko import HostKeys

            return HostKeys.hash_host(name, self.names) == self.names
        patterns = self.names.lower().split(",")
        if any(p.startswith("!") and _matches(name, p[1:]) for p in patterns):
            return False
        return any(_matches(name, p) for p in patterns)


def of_paramiko(key: paramiko.PKey) -> HostKey:
    """The key that a server showed."""
    return HostKey(type=key.get_name(), blob=key.asbytes())


def known(target: Target) -> list[Entry]:
    """The lines of the target's known_hosts files that are about it, revoked ones included."""
    lines = (entry for path in dict.fromkeys(target.known_hosts) for entry in read(path))
    return [entry for entry in lines if entry.is_for(target.known_as)]


def read(path: Path) -> Iterator[Entry]:
    """Every line that holds a key; a file that is not there has none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in {"", "@revoked"}:
            continue  # a @cert-authority signs host certificates, which paramiko does not check
        try:
            blob = base64.b64decode(words[2], validate=True)
        except ValueError:
            continue
        key = HostKey(type=words[1], blob=blob)
        yield Entry(path=path, line=number, names=words[0], revoked=marker == "@revoked", key=key)


def check(target: Target, shown: HostKey) -> None:
    """Return when *shown* is the key that is known for *target*; HostKeyError in every other case."""
    entries = known(target)
    if any(entry.revoked and entry.key == shown for entry in entries):
        raise HostKeyError(
            f"{target.name}: {target.known_as} shows a revoked host key: {shown}. Nothing was sent to it.",
            hint=f"Give it a new host key, then: edgebench devices trust {target.device} --replace",
        )
    valid = [entry for entry in entries if not entry.revoked]
    if any(entry.key == shown for entry in valid):
        return
    if not valid:
        raise HostKeyError(
            f"{target.name}: the host key of {target.known_as} is not known: {shown}.",
            hint=f"Compare it with the device, then: edgebench devices trust {target.device}",
        )
    same = [entry for entry in valid if entry.key.type == shown.type] or valid
    raise HostKeyError(
        f"{target.name}: THE HOST KEY OF {target.known_as} HAS CHANGED. "
        f"Known ({same[0].path}:{same[0].line}): {same[0].key}. "
        f"Shown now: {shown}. Somebody may be in between; nothing was sent.",
        hint="Was the device set up anew? Compare the key on the device itself (ssh-keygen -lf "
        f"/etc/ssh/ssh_host_ed25519_key.pub), then: edgebench devices trust {target.device} --replace",
    )


def pin(target: Target, keys: Iterable[HostKey], *, replace: bool) -> Path:
    """
    Write *keys* into the user's known_hosts (hashed where ssh would) and return that file.

    *replace* drops the keys that this file has for the target; other files are not touched.
    """
    path = target.known_hosts[0]
    old = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
    drop = {e.line for e in read(path) if replace and not e.revoked and e.is_for(target.known_as)}
    lines = [line for number, line in enumerate(old, 1) if number not in drop]
    for key in keys:
        lines.append(f"{_name(target)} {key.type} {base64.b64encode(key.blob).decode()}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".known_hosts-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(f"{line}\n" for line in lines))
    Path(beside).chmod(mode)
    Path(beside).replace(path.resolve())
    return path


def _name(target: Target) -> str:
    from paramiko import HostKeys

    return HostKeys.hash_host(target.known_as) if target.hash_known_hosts else target.known_as


def _matches(name: str, pattern: str) -> bool:
    # Only * and ? are special there; [host]:port is meant as it is written.
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
