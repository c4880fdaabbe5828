"""A Link to a process of this machine, over two pipes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence

from harness.core.errors import DeviceError


class Pipe:
    """Starts *argv*; its standard error is ours."""

    def __init__(self, argv: Sequence[str]) -> None:
        try:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the harness
            )
        except OSError as error:
            raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}.") from error
        self._closing = threading.Lock()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    def read(self, n: int, /) -> bytes:
        """Between 1 and n bytes; none at the end."""
        assert self._child.stdout is not None
        return os.read(self._child.stdout.fileno(), n)

    def write(self, data: bytes, /) -> None:
        """All of it."""
        assert self._child.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._child.stdin.fileno(), view) :]

    def close(self) -> None:
        """End of input ends a supervisor; one that does not see it is killed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with self._closing:
            self._child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)
            self._child.kill()
            self._child.wait()
            self._child.stdout.close()
