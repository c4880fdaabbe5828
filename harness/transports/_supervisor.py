"""The host's side of device_agents/SUPERVISOR.md: calls, files and agents that outlive a lost link."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from harness.core.errors import DeviceError, DeviceRebooted, SupervisorError, TransientDeviceError
from harness.transports import Pushed, _push
from harness.transports._remote import MAX_OUTPUT_BYTES, RemoteProcess
from harness.transports._wire import Connection, Link, LinkLost, bootstrap_command

__all__ = ["Link", "Supervisor", "bootstrap_command"]

ANSWER_S = 30.0
PULL_BYTES = 1 << 22
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_SLICE_S = 20.0  # at a time in a wait: nothing of ours wakes more often beside a timed block
LEAVING_S = 5.0  # how long a lost link is tried again when the user wants to leave
#: What a call may take on the device itself.
WORK_S: Mapping[str, float] = {
    "unpack": 900.0,
    "remove": 300.0,
    "settings": 120.0,
    "sweep": 120.0,
    "stop": 15.0,
}

T = TypeVar("T")


@dataclass(slots=True)
class _Outage:
    """From the loss of the link until something was answered again."""

    what: str
    why: str
    since_s: float
    attempts: int = 0
    last: str = ""


@dataclass(slots=True)
class _Lease:
    """What has to be said again before it is over."""

    arguments: dict[str, Any]
    period_s: float
    renewed_s: float


class Supervisor:
    """
    Everything of a Transport that goes through the supervisor on the device.

    *open_link* starts ``bootstrap_command(python)`` there; it raises TransientDeviceError when trying again
    may help, DeviceError when not. The first connection is tried once, when it is first needed; a lost one
    for *patience_s* per outage.
    """

    def __init__(
        self,
        open_link: Callable[[], Link],
        *,
        workdir: str,
        patience_s: float,
        name: str,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._open_link = open_link
        self._wanted_workdir = workdir
        self._patience_s = patience_s
        self._name = name
        self._answer_s = answer_s
        self.say: Callable[[str], None] = lambda _text: (
            None
        )  # told when the link is lost, and when it is back
        self._client = uuid.uuid4().hex
        self._connection: Connection | None = None
        self._facts: dict[str, Any] = {}
        self._outage: _Outage | None = None
        self._incidents: list[str] = []
        self._lease: _Lease | None = None
        self._closed = threading.Event()
        self._busy = threading.RLock()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What hello said at the last connection."""
        if not self._facts:
            self._patiently("hello", lambda _: None)
        return self._facts

    @property
    def workdir(self) -> str:
        """The absolute path of our folder on the device."""
        return str(self.facts["workdir"])

    @property
    def incidents(self) -> Sequence[str]:
        """One sentence for each time that the link was lost and came back, in order."""
        return tuple(self._incidents)

    def call(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        """
        One call of SUPERVISOR.md that carries no raw bytes.

        SupervisorError when it is refused, TransientDeviceError when the link was lost for too long. A lease
        that is taken here is renewed in the background until it is released.
        """
        if method == "hello":
            arguments = {"workdir": self._wanted_workdir, "client": self._client}
        work_s = WORK_S.get(method, 0.0) + float(arguments.get("timeout_s", 0) or 0) * (method == "run")
        work_s += float(arguments.get("for_s", 0)) * (method == "wait")
        facts = self._patiently(method, lambda connection: connection.ask(method, arguments, work_s)[0])
        if method == "lease":
            self._remember_lease(arguments)
        return facts

    def push(self, source: Path, name: str) -> str:
        """Put *source* there as *name*, unless it is there; its path there."""
        return self.push_all({name: source}).paths[name]

    def push_all(self, files: Mapping[str, Path]) -> Pushed:
        """Put many files there; only what is missing is sent. SupervisorError ``corrupt``, ``no_space`` …"""
        progress = _push.Progress(_push.sources(files))
        what = next(iter(files)) if len(files) == 1 else f"{len(files)} files"
        if files:
            self._patiently(f"push of {what}", partial(self._push, progress))
        return Pushed(
            paths={name: f"{self.workdir}/files/{name}" for name in files},
            sent_files=len(progress.files),
            sent_bytes=progress.sent_bytes,
        )

    def _push(self, progress: _push.Progress, connection: Connection) -> None:
        def forward() -> None:
            self._forward()
            self._renew(connection)

        _push.push(connection, progress, forward)

    def pull(self, name: str, target: Path) -> None:
        """Fetch *name* into *target*, which is whole or not there."""
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with beside.open("wb") as file:
                size = 1
                while file.tell() < size:
                    wanted = {"name": name, "offset": file.tell(), "limit": PULL_BYTES}
                    facts, data = self._patiently(f"pull of {name}", partial(_ask, "pull", wanted))
                    file.write(data)
                    size = int(facts["size"])
                    if not data and file.tell() < size:
                        raise DeviceError(f"{name} became shorter while it was pulled from {self._name}.")
            beside.replace(target)
        except OSError as error:
            raise DeviceError(f"{target} cannot be written: {error.strerror}.") from error
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout_s: float,
        cpus: Sequence[int] = (),
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Iterator[RemoteProcess]:
        """Run *argv* under a keeper on the device; leaving the context ends it and what it started."""
        job = uuid.uuid4().hex
        started: dict[str, Any] = {"job": job, "argv": list(argv), "env": dict(env), "cpus": list(cpus)}
        started.update(timeout_s=timeout_s, max_output_bytes=max_output_bytes)
        process = RemoteProcess(self._ask_job, job, timeout_s, self._slice_s)
        patience_s = 0.0
        try:
            facts = self._patiently(
                "start of an agent", lambda connection: connection.ask("start", started)[0]
            )
            process.started(facts, self._facts["boot_id"])
            yield process
            patience_s = self._patience_s
        except TransientDeviceError:
            raise  # it was tried for long enough: the keeper's deadline and the janitor end it
        except BaseException:
            patience_s = min(self._patience_s, LEAVING_S)
            raise
        finally:
            self._stop(job, patience_s)

    def close(self) -> None:
        """Let go of the device; what runs there is left to its keeper and the janitor."""
        self._closed.set()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _slice_s(self) -> float:
        """How long a device may sleep without hearing from us."""
        return min(LONGEST_SLICE_S, self._lease.period_s / 3) if self._lease else LONGEST_SLICE_S

    def _stop(self, job: str, patience_s: float) -> None:
        patience_s, self._patience_s = self._patience_s, patience_s
        try:
            self._patiently("end of an agent", lambda connection: connection.ask("stop", {"job": job}, 15.0))
        except TransientDeviceError:
            pass  # the outage goes on: whoever asks next is told of it
        except SupervisorError as error:
            self.say(f"{self._name}: an agent could not be told to end; its deadline does that. {error}")
        finally:
            self._patience_s = patience_s

    def _ask_job(
        self, boot_id: str, call: str, arguments: dict[str, Any], within_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """A call for a job that was started in that boot; the lease is renewed on the way."""

        def work(connection: Connection) -> tuple[dict[str, Any], bytes]:
            if self._facts["boot_id"] != boot_id:
                raise DeviceRebooted(
                    f"{self._name} restarted while an agent ran there; what it measured is gone."
                )
            self._renew(connection)
            return connection.ask(call, arguments, within_s)

        return self._patiently("a running agent", work)

    def _remember_lease(self, arguments: dict[str, Any]) -> None:
        if arguments["action"] == "release":
            self._lease = None
            return
        begin = self._lease is None
        period_s = float(arguments.get("period_s", 60.0))
        again = {**arguments, "action": "renew"}
        again.pop("replaces", None)
        self._lease = _Lease(again, period_s, time.monotonic())
        if begin:
            threading.Thread(target=self._keep_lease, name="lease", daemon=True).start()

    def _keep_lease(self) -> None:
        """Renew while nothing else is asked; a call that goes on for long does it itself."""
        while (lease := self._lease) is not None and not self._closed.wait(lease.period_s / 3):
            if self._connection is None or not self._busy.acquire(blocking=False):
                continue
            try:
                if self._connection is not None:
                    self._renew(self._connection)
                    self._connection.drain()
            except LinkLost:
                pass  # the next call finds the connection broken, and tries again for as long as it may
            finally:
                self._busy.release()

    def _renew(self, connection: Connection) -> None:
        lease = self._lease
        if lease is not None and time.monotonic() - lease.renewed_s >= lease.period_s / 3 - 0.01:
            lease.renewed_s = time.monotonic()
            connection.send("lease", lease.arguments)  # its answer is passed over with the next one

    def _patiently(self, what: str, work: Callable[[Connection], T]) -> T:
        """Do *work*, again after each loss of the link, as long as patience lasts."""
        with self._busy:
            patient = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(LinkLost),
                wait=lambda _: self._pause_s(),
                stop=lambda _: self._is_over(),
                retry_error_callback=self._give_up,
            )
            result: T = patient(self._attempt, what, work)
            return result

    def _attempt(self, what: str, work: Callable[[Connection], T]) -> T:
        try:
            result = work(self._connected())
        except LinkLost as error:
            self._connection = None
            if self._outage is None:
                self._outage = _Outage(what, str(error), time.monotonic())
                if self._patience_s > 0 and not self._closed.is_set():
                    wait = f"waiting up to {self._patience_s:.0f} s for it to come back"
                    self.say(f"{self._name}: the link is lost; {wait}")
            self._outage.attempts += 1
            self._outage.last = str(error)
            raise
        except SupervisorError:
            self._forward()
            raise
        self._forward()
        return result

    def _pause_s(self) -> float:
        attempts = self._outage.attempts if self._outage else 1
        longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 10))
        return random.uniform(longest / 2, longest)

    def _is_over(self) -> bool:
        return self._outage is not None and time.monotonic() - self._outage.since_s >= self._patience_s

    def _give_up(self, _: object) -> Any:
        """It is not over by that: what is asked next tries once more, and may find that it is."""
        outage = self._outage
        if outage is None:
            raise AssertionError("only a lost link is tried again")
        tried_s = time.monotonic() - outage.since_s
        within = f"within {tried_s:.0f} s" if tried_s >= 1 else "at once"
        tried = "once" if outage.attempts == 1 else f"{outage.attempts} times"
        raise TransientDeviceError(
            f"{self._name}: the link was lost ({outage.what}: {outage.why}) "
            f"and did not come back {within}, tried {tried} "
            f"(last: {outage.last.rstrip('.')}).",
            hint="Is the device on, and its network? What was finished is kept.",
        )

    def _forward(self) -> None:
        """Something was answered: an outage, if there was one, is over."""
        if self._outage is not None:
            outage, self._outage = self._outage, None
            away_s = time.monotonic() - outage.since_s
            self._incidents.append(
                f"The link was lost ({outage.what}: {outage.why}) and came back after {away_s:.1f} s."
            )
            self.say(f"{self._name}: the link is back after {away_s:.0f} s")

    def _connected(self) -> Connection:
        """The connection there is, or a new one."""
        if self._connection is not None:
            return self._connection
        if self._closed.is_set():
            raise DeviceError(f"{self._name}: the connection was closed.")
        first = not self._facts
        try:
            connection = Connection(self._open_link(), answer_s=self._answer_s)
            facts, _ = connection.ask(
                "hello", {"workdir": self._wanted_workdir, "client": self._client}, 10.0
            )
        except (TransientDeviceError, LinkLost) as error:
            if not first:
                raise LinkLost(str(error)) from error
            if isinstance(error, TransientDeviceError):
                raise
            raise TransientDeviceError(
                f"{self._name}: the program that we run there did not answer: {error}.",
                hint="It needs Python 3.8 or newer there.",
            ) from error
        self._connection, self._facts = connection, facts
        return connection


def _ask(call: str, arguments: dict[str, Any], connection: Connection) -> tuple[dict[str, Any], bytes]:
    return connection.ask(call, arguments)
