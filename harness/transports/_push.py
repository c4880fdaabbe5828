"""Many files to a device in a few round trips; a cut costs only what was under way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import DeviceError, SupervisorError
from harness.transports._wire import Connection

CHUNK_BYTES = 1 << 20  # small enough that a slow link answers while the lease lasts
WINDOW_BYTES = 1 << 24  # sent and not answered yet, at most
WINDOW_REQUESTS = 256
SLOW_BYTES_PER_S = 1 << 16  # no link that is of use is slower
HASH_BYTES_PER_S = 1 << 23  # no device that is of use hashes slower


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was when its hash was taken."""

    path: Path
    sha256: str
    size: int


@dataclass(slots=True)
class Progress:
    """What a push did so far, over all its connections."""

    sources: Mapping[str, Source]
    files: set[str] = field(default_factory=set)  # that were missing
    sent_bytes: int = 0
    there: dict[str, int] = field(default_factory=dict)  # what the device said last of the missing ones
    corrupt: set[str] = field(default_factory=set)  # that were sent anew once


def sources(files: Mapping[str, Path]) -> dict[str, Source]:
    """Hash every file; DeviceError names the one that cannot be read."""
    found = {}
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                found[name] = Source(path, sha256, file.tell())
        except OSError as error:
            raise DeviceError(f"{path} cannot be read: {error.strerror}.") from error
    return found


def push(connection: Connection, progress: Progress, forward: Callable[[], None]) -> None:
    """
    Send what is missing, over this connection; *forward* is called when the device has more than before.

    LinkLost: call it again with the next connection. SupervisorError: the device refused a file.
    """
    while True:
        wanted = {name: [source.sha256, source.size] for name, source in progress.sources.items()}
        total = sum(source.size for source in progress.sources.values())
        facts, _ = connection.ask("have", {"files": wanted}, total / HASH_BYTES_PER_S)
        missing: dict[str, int] = facts["missing"]
        if sum(missing.values()) > sum(progress.there.values()) or len(missing) < len(progress.there):
            forward()
        progress.there = missing
        progress.files |= set(missing)
        if not missing:
            return
        again = _send(connection, progress, missing, forward)
        if not again:
            return
        for name in again & progress.corrupt:
            path = progress.sources[name].path
            raise SupervisorError(
                "corrupt",
                f"{path} came other than it was sent, twice.",
                hint="Is it being written to? If not, look at the device's memory and disk.",
            )
        progress.corrupt |= again


def _send(
    connection: Connection, progress: Progress, missing: Mapping[str, int], forward: Callable[[], None]
) -> set[str]:
    """Send the missing ones, a window ahead of the answers; the names of those that came corrupt."""
    window: deque[tuple[int, str, int]] = deque()
    corrupt: set[str] = set()

    def settle(requests: int, size: int) -> None:
        while len(window) > requests or sum(entry[2] for entry in window) > size:
            outstanding = sum(entry[2] for entry in window)
            number, name, _ = window.popleft()
            try:
                connection.answer(number, outstanding / SLOW_BYTES_PER_S)
            except SupervisorError as error:
                if error.kind == "corrupt":
                    corrupt.add(name)
                elif name not in corrupt:
                    raise
            else:
                forward()

    for name, there in missing.items():
        source = progress.sources[name]
        head = {"name": name, "sha256": source.sha256, "size": source.size}
        with source.path.open("rb") as file:
            file.seek(there)
            offset = there
            while name not in corrupt:
                data = file.read(min(CHUNK_BYTES, source.size - offset))
                if not data and offset < source.size:
                    raise DeviceError(f"{source.path} became shorter while it was pushed.")
                settle(WINDOW_REQUESTS, WINDOW_BYTES - len(data))
                number = connection.send("push", {**head, "offset": offset}, data)
                window.append((number, name, len(data)))
                progress.sent_bytes += len(data)
                offset += len(data)
                if offset >= source.size:
                    break
    settle(0, 0)
    return corrupt
