"""Which keys the hosts on the way to a device show, and which of them are known: before one is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.transports import _ssh_known
from harness.transports._ssh_auth import Secrets
from harness.transports._ssh_config import Target
from harness.transports._ssh_known import Entry, HostKey
from harness.transports._ssh_link import handshake, open_way, sentences
from harness.transports._ssh_way import Heard, Way

#: One connection for each: a server shows one key at a time.
KEY_TYPES = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a host shows beside what is known of it."""

    target: Target
    shown: tuple[HostKey, ...]
    known: tuple[Entry, ...]

    @property
    def state(self) -> Literal["known", "new", "changed", "revoked"]:
        """Known is who shows a known key and none that differs from a known one of its type."""
        valid = {(entry.key.type, entry.key.blob) for entry in self.known if not entry.revoked}
        types = {kind for kind, _ in valid}
        shown = {(key.type, key.blob) for key in self.shown}
        if shown & {(entry.key.type, entry.key.blob) for entry in self.known if entry.revoked}:
            return "revoked"
        if not valid:
            return "new"
        differs = any(key.type in types and (key.type, key.blob) not in valid for key in self.shown)
        return "changed" if differs or not shown & valid else "known"


def look(targets: Sequence[Target], secrets: Secrets, timeout_s: float) -> Finding:
    """
    The keys that the last target shows; those before it must be trusted already.

    Nothing is sent to the target but what it takes to see its key. Raises as a connection does.
    """
    *before, target = targets
    way = open_way(before, secrets, timeout_s) if before else Way(target.name)
    try:
        with sentences(target):
            shown = [key for types in KEY_TYPES if (key := _shown(target, way, types, timeout_s))]
    finally:
        way.close()
    return Finding(target=target, shown=tuple(shown), known=tuple(_ssh_known.known(target)))


def _shown(target: Target, way: Way, types: Sequence[str], timeout_s: float) -> HostKey | None:
    import paramiko

    try:
        transport = handshake(target, way.last, Heard(), timeout_s, types)
    except paramiko.ssh_exception.IncompatiblePeer:
        return None  # it has no such key
    key = transport.get_remote_server_key()
    transport.close()
    return _ssh_known.of_paramiko(key)
