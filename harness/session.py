"""
One device while it is used: lease, settings, probe, agents; everything is put back on every way out.

connect → take the lease → put back what an earlier session left changed → end its agents → push and probe →
apply settings → blocks → put back → drop the lease → close. Should this process vanish, the supervisor on
the device puts back and drops the lease by itself (device_agents/SUPERVISOR.md).
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import device_agents
from harness import agent_process, leasing, probing, provisioning, runners, taking_turns
from harness.agent_process import ENVIRONMENT
from harness.core import cpu_list, fingerprint, plugins
from harness.core.errors import CellError, DeviceError, EdgebenchError, SupervisorError, TransientDeviceError
from harness.core.places import cache_dir
from harness.core.types import RUNTIMES, Block, Device, FormatName, Job, Runtime, Setting
from harness.transports import Telling, Transport

LEAVING_S = 10.0  # how long a device is tried to be put back after an error or Ctrl-C
AGENT = Path(device_agents.__file__).parent / "agent.py"
#: What installs a runtime, where the wheel has another name.
WHEELS: Mapping[str, str] = {"litert": "ai-edge-litert"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a session behaves towards others: *check* is called while it waits and may raise to stop it."""

    run: str = ""  # what another host is told when it wants the device
    wait_s: float = 0.0  # how long to wait for a device that is in use
    say: Callable[[str], None] = lambda _text: None
    check: Callable[[], None] = lambda: None
    settings: bool = True  # whether the device gets its settings: not needed when nothing is timed
    sessions: list[Session] = field(default_factory=list)  # that are open now


class Session:
    """A device that answered, with the agent on it, held by us."""

    def __init__(self, device: Device, conduct: Conduct) -> None:
        self.device = device
        self.facts: dict[str, Any] = {}  # what it is: equal for two records that may be compared
        self.conditions: dict[str, Any] = {}  # how it was when the session began
        self.transport: Transport
        self._conduct = conduct
        self._held = False  # whether the lease is ours
        self._agent = ""  # path of agent.py on the device
        self._fingerprint = ""  # path of the program there that tells what it is
        self._oom_kills: object = None  # how often the device had run out of memory when it was last asked
        self._pushed: dict[tuple[Path, int, int], str] = {}
        self._installed: provisioning.Manifest | None = None  # what ``edgebench provision`` put there
        self._native: runners.Runner | runners.NoRunner | CellError | None = None
        self._settings = {name: v for name, v in device.settings.items() if name not in ("sudo", "affinity")}
        self._cpus = cpu_list.parse(device.settings["affinity"]) if "affinity" in device.settings else ()
        self._why_not: dict[str, str] = {}  # setting → why it was not taken
        self._abandoned = False
        self._told: list[str] = []
        self._told_by_transport = 0

    # --- the course of a session -------------------------------------------------------------------

    def connect(self) -> str:
        """Connect; the boot id of the device."""
        self.transport = plugins.load("harness.transports", self.device.transport).connect(self.device)
        self._told_by_transport = 0
        if isinstance(self.transport, Telling):
            self.transport.tell(self._conduct.say)
        try:
            return str(self.transport.call("hello", workdir=self.transport.workdir).get("boot_id") or "")
        except BaseException:
            self.transport.close()
            raise

    def take(self) -> None:
        """Take the lease and mend what an earlier session left: settings, agents that still run."""
        how = self._conduct
        mine = leasing.owner(how.run)
        leasing.take(self.device, self.transport, mine, wait_s=how.wait_s, say=how.say, check=how.check)
        self._held = True
        self._restore()
        self.transport.call("sweep")

    def prepare(self) -> None:
        """Push the agent, probe and, where they are wanted, apply the settings."""
        content = hashlib.sha256(AGENT.read_bytes()).hexdigest()
        if self.device.transport != "local":
            self._installed = provisioning.installed(self.transport)
        agent, program = f"agent-{content[:16]}.py", probing.program()
        paths = self.transport.push_all({agent: AGENT, program.name: program}).paths
        self._agent, self._fingerprint = paths[agent], paths[program.name]
        before = self.facts
        self.facts, self.conditions = fingerprint.split(self._probe())
        if before and (changed := fingerprint.differences(before, self.facts)):
            name = changed[0]
            raise DeviceError(
                f"{self.device.name} came back as another device: its {name} was {before.get(name)}, "
                f"now it is {self.facts.get(name)}."
            )
        if self._settings and self._held and self._conduct.settings:
            self._why_not = {
                name: str(found["reason"])
                for name, found in self._call_settings("apply").items()
                if found.get("reason")
            }

    def reconnect(self) -> None:
        """Begin again on a device that was lost: a new connection, lease, agent and settings as before."""
        self._conduct.check()
        self._leave(restore=False)
        self._pushed.clear()
        self.connect()
        self.take()
        self.prepare()

    def forget(self) -> None:
        """Our folder on the device was removed: there is nothing left to put back."""
        self._held = False

    def incidents(self) -> list[str]:
        """What has happened to the link since this was last asked, one sentence each."""
        self._hear()
        told, self._told = self._told, []
        return told

    def abandon(self) -> None:
        """Cut the link from another thread, so that nothing is waited for any more; end() mends that."""
        self._abandoned = True
        self._cut()

    def _cut(self) -> None:
        """Free a call that waits for a device that went dark."""
        self.transport.close()

    def end(self, error: BaseException | None) -> None:
        """
        Put everything back and let go, whatever *error* ended the use of the device.

        In a thread of its own: a second Ctrl-C ends the waiting, and the process waits for it at its end.
        """
        worker = threading.Thread(target=self._end, args=(error,), name=f"end of {self.device.name}")
        worker.start()
        worker.join()

    def _end(self, error: BaseException | None) -> None:
        hurry = threading.Timer(LEAVING_S, self._cut)
        hurry.daemon = True
        if error is not None:
            hurry.start()
        try:
            if self._abandoned and self._held:
                self._leave(restore=False)
                self.connect()
                self.take()
            self._leave(restore=not isinstance(error, TransientDeviceError))
        except EdgebenchError as trouble:
            left = "Its supervisor puts settings back and ends agents when the lease is over."
            self._conduct.say(f"{self.device.name} could not be left as it was found: {trouble} {left}")
        finally:
            hurry.cancel()

    def _leave(self, *, restore: bool) -> None:
        held, self._held = self._held, False
        try:
            if held and restore:
                self._restore()
                leasing.release(self.transport)
        finally:
            self._hear()
            self.transport.close()

    def _restore(self) -> None:
        for name, found in self.transport.call("settings", action="restore").items():
            if found.get("reason"):
                why = f"{name} could not be put back to {found['requested']}: {found['reason']}"
                self._conduct.say(f"{self.device.name}: {why}")

    def _hear(self) -> None:
        told = self.transport.incidents
        self._told += told[self._told_by_transport :]
        self._told_by_transport = len(told)

    # --- what a session is for -----------------------------------------------------------------------

    def push(self, path: Path, *, sha256: str | None = None) -> str:
        """Put a file on the device, named by its hash (which must be *sha256*, if given); its path there."""
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns, stat.st_size)
            if key not in self._pushed:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                if sha256 is not None and content != sha256:
                    raise CellError("push_failed", f"{path} was changed since it was checked.")
                self._pushed[key] = self.transport.push(path, f"{content[:16]}{path.suffix}")
        except TransientDeviceError:
            raise
        except (OSError, DeviceError) as error:
            why = f"{path} cannot be put on {self.device.name}: {error}"
            raise CellError("push_failed", why) from error
        return self._pushed[key]

    def runtime(self, format_name: FormatName) -> Runtime:
        """What will run files of this format; CellError ``runtime_missing`` with the install command."""
        name = RUNTIMES[format_name]
        note = ""
        if format_name == "executorch":
            native = self._native_runner()
            if isinstance(native, runners.Runner):
                return Runtime(name=name, version=native.version, engine="native")
            note = native.reason
        version = self.facts.get("runtimes", {}).get(name)
        if version is None:
            raise self._missing(name)
        return Runtime(name=name, version=version, engine="python", note=note)

    def _missing(self, name: str) -> CellError:
        why = f"{self.device.name} has no {name}."
        if self.device.transport == "local":
            hint = f"Install it: {self.transport.python} -m pip install {WHEELS.get(name, name)}"
            return CellError("runtime_missing", why, hint=hint)
        if self._installed and name in self._installed.missing:
            return CellError("runtime_missing", f"{why} {self._installed.missing[name]}")
        hint = f"Put it there: edgebench provision {shlex.quote(self.device.name)}"
        return CellError("runtime_missing", why, hint=hint)

    def run(self, job: Job, index: int) -> Block:
        """Run *job* in a fresh process, with what the device's settings were; as agent_process.run."""
        argv, env = self._command(job)
        try:
            block = agent_process.run(
                self.transport,
                argv,
                env,
                job,
                index=index,
                cpus=self._cpus,
                out_of_memory=self._killed_for_memory,
            )
        except SupervisorError as error:
            if error.kind == "held":  # the link was away for longer than our lease
                raise leasing.in_use(self.device, error) from error
            raise
        settings, facts = dict(block.settings), dict(block.facts)
        if self._settings:
            for name, found in self._call_settings("read").items():
                settings[name] = Setting(requested=self._settings[name], observed=found["observed"])
        if self._why_not:
            facts["settings_not_taken"] = dict(self._why_not)
        return replace(block, settings=settings, facts=facts)

    def _call_settings(self, action: str) -> Mapping[str, Any]:
        sudo = bool(self.device.settings.get("sudo"))
        found = self.transport.call("settings", action=action, wanted=dict(self._settings), sudo=sudo)
        return {name: found[name] for name in self._settings}

    def _killed_for_memory(self) -> bool | None:
        """Whether the device killed for memory since it was last asked; None where it cannot tell."""
        before = self._oom_kills
        try:
            self._probe()
        except TransientDeviceError:
            raise
        except DeviceError:  # e.g. a full disk: the reason why the agent ended is the one to tell
            return None
        return before != self._oom_kills

    def _probe(self) -> dict[str, Any]:
        """What the device is and how it is now."""
        argv: Sequence[str] = [self.transport.python, self._fingerprint, "mode=probe"]
        facts = agent_process.probe(self.transport, argv, self.python_env(), name=self.device.name)
        self._oom_kills = facts.get("oom_kills")
        if self._installed:
            facts = self._installed.completed(facts)
        if self.device.emulated:
            facts["emulated"] = True
        return facts

    def _native_runner(self) -> runners.Runner | runners.NoRunner:
        """The runner for this device, made once; CellError if there is a compiler and it fails."""
        if self._native is None:
            self._native = self._make_runner()
        if isinstance(self._native, CellError):
            raise self._native
        return self._native

    def _make_runner(self) -> runners.Runner | runners.NoRunner | CellError:
        if self.device.transport != "local":
            found = self._installed.runner if self._installed else None
            if found is None:
                return runners.NoRunner(reason="there is no native runner on this device")
            return runners.Runner(
                path=Path(found.path), library_dir=Path(found.library_dir), version=found.version
            )
        try:
            return runners.executorch(cache_dir())
        except EdgebenchError as error:
            return CellError("agent_failed", error.message, hint=error.hint)

    def _command(self, job: Job) -> tuple[list[str], dict[str, str]]:
        native = self._native_runner() if job.format == "executorch" else None
        if isinstance(native, runners.Runner):
            argv, env = [str(native.path)], {**ENVIRONMENT, "LD_LIBRARY_PATH": str(native.library_dir)}
        else:
            argv, env = [self.transport.python, self._agent], self.python_env()
        return argv + agent_process.arguments(job), env

    def python_env(self) -> dict[str, str]:
        """The environment of our Python programs there."""
        return {**ENVIRONMENT, **(self._installed.python_env() if self._installed else {})}


@contextmanager
def open_session(device: Device, conduct: Conduct | None = None) -> Iterator[Session]:
    """
    Hold *device*, ready for blocks.

    DeviceError when it does not answer as it should, CellError ``not_ready`` when somebody else holds it.
    Two entries that lead to one machine take turns; emulated devices share the machine that emulates them.
    """
    conduct = conduct or Conduct()
    with ExitStack() as stack:
        stack.enter_context(taking_turns.turn(taking_turns.address(device), conduct.check))
        session = Session(device, conduct)
        boot_id = session.connect()
        failure: BaseException | None = None
        try:
            if boot_id and not device.emulated:
                stack.enter_context(taking_turns.turn(("boot", boot_id), conduct.check))
            conduct.sessions.append(session)
            stack.callback(conduct.sessions.remove, session)
            session.take()
            session.prepare()
            yield session
        except BaseException as error:
            failure = error
            raise
        finally:
            session.end(failure)


@contextmanager
def look(device: Device) -> Iterator[Session]:
    """*device* with its facts, without holding it: nothing there is changed or ended."""
    session = Session(device, Conduct())
    session.connect()
    try:
        session.prepare()
        yield session
    finally:
        session.end(None)
