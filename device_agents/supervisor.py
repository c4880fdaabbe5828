"""What a device does for us, call by call, over its standard input and output (SUPERVISOR.md)."""

import errno
import json
import os
import pwd
import select
import signal
import sys
import time
import zlib

import keeper
import lease
from files import BLOCK, Files, is_marked, plain
from keeper import Refused, load, save

PROTOCOL = 1
GREETING = b"edgebench supervisor 1\n"
#: Calls that may take longer than a lease, and for how long it is then held beyond its period.
LONG_S = {"unpack": 900, "have": 300, "settings": 120}
MOST_WAITING = 256  # whole files that wait to be made durable together
MORE_S = 0.02  # a host that says that more comes is waited for this long before that
KINDS = {errno.ENOSPC: "no_space", errno.EDQUOT: "no_space", errno.EROFS: "read_only"}
KINDS.update({errno.EACCES: "not_permitted", errno.EPERM: "not_permitted", errno.ENOENT: "not_found"})


class Wire:
    """Requests come on standard input, answers go to standard output; nothing else is written there."""

    def __init__(self):
        self.source, self.sink = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        # What Python read ahead of the sources that it was started with; more is not there, but in source.
        self.buffer = sys.stdin.buffer.read1(BLOCK)
        self.send(GREETING)

    def idle(self, for_s):
        """Whether no byte of a further request comes within that time."""
        return not self.buffer and not select.select([self.source], [], [], for_s)[0]

    def line(self):
        """One line; None at the end of input."""
        parts = []
        while b"\n" not in self.buffer:
            parts.append(self.buffer)
            self.buffer = os.read(self.source, BLOCK)
            if not self.buffer:
                return None
            if sum(map(len, parts)) > 1 << 24:
                raise ValueError("a line has no end")
        end, _, self.buffer = self.buffer.partition(b"\n")
        return b"".join(parts) + end

    def read_into(self, view):
        """Fill the front of *view*; how many bytes came. EOFError at the end of input."""
        if self.buffer:
            count = min(len(view), len(self.buffer))
            view[:count], self.buffer = self.buffer[:count], self.buffer[count:]
            return count
        count = os.readv(self.source, [view])
        if not count:
            raise EOFError
        return count

    def send(self, *pieces):
        """Write all of it."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self.sink, view) :]


class Body:
    """The raw bytes that follow a request."""

    def __init__(self, wire, size):
        self.wire, self.left, self.buffer = wire, size, memoryview(bytearray(min(size, BLOCK)))

    def blocks(self):
        """All of it, piece by piece; a piece is good until the next one."""
        while self.left:
            count = self.wire.read_into(self.buffer[: min(self.left, BLOCK)])
            self.left -= count
            yield self.buffer[:count]


class Supervisor:
    """One method for each call."""

    def __init__(self, wire):
        self.wire, self.files, self.client, self.waiting = wire, None, None, []

    def serve(self):
        """Answer requests until the end of input."""
        more = False
        while True:
            if self.waiting and (
                len(self.files.whole) >= MOST_WAITING or self.wire.idle(MORE_S if more else 0)
            ):
                self.settle()
            line = self.wire.line()
            if line is None:
                return
            request = json.loads(line)
            body, more = Body(self.wire, request.pop("bytes", 0)), request.pop("more", False)
            if request.get("call") != "push":
                self.settle()
            number, answer = request.pop("id", None), self.answer(request, body)
            for _ in body.blocks():  # of a refused push
                pass
            self.waiting.append((number, answer))
            if not (self.files and self.files.whole):
                self.settle()

    def answer(self, request, body):
        """({"ok": …} or {"error": …}, raw bytes)."""
        try:
            name = request.pop("call", None)
            call = CALLS.get(name)
            if call is None:
                raise Refused("bad_request", "There is no such call; this is protocol {}.".format(PROTOCOL))
            if self.files is None and call is not Supervisor.hello:
                raise Refused("bad_request", "The first call is hello.")
            if name == "push":
                request["body"] = body
            work_s = float(request.get("timeout_s", 0)) if name == "run" else LONG_S.get(name)
            if work_s is not None:
                lease.extend(self.files.workdir, self.client, work_s)
            found = call(self if name in OWN else self.files, **request)
            if work_s is not None:
                lease.extend(self.files.workdir, self.client, 0)
            facts, raw = found if isinstance(found, tuple) else (found, b"")
            return {"ok": facts}, raw
        except EOFError:
            raise
        except Exception as error:
            return {"error": told(error)}, b""

    def settle(self):
        """Make finished files durable and give them their names, then send all answers that wait for that."""
        failed, pieces = {}, []
        for facts, error in self.files.settle() if self.files else ():
            failed[id(facts)] = {"error": told(error)}
        for number, (answer, raw) in self.waiting:
            head = dict(failed.get(id(answer.get("ok")), answer), id=number)
            if raw:
                head["bytes"] = len(raw)
            pieces += [json.dumps(head).encode("ascii") + b"\n", raw]
        self.waiting = []
        self.wire.send(b"".join(pieces))  # at once: what comes in pieces waits for the other side's TCP

    def hello(self, workdir, client):
        """Make the folder, end an earlier supervisor of the same client, say what this device is."""
        self.client = plain(client)
        self.files = Files(os.path.abspath(os.path.expanduser(workdir)))
        with lease.locked(self.files.workdir):
            self.link_up(self.files.place("links", self.client))
        disk = os.statvfs(self.files.workdir)
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = str(os.getuid())
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "uid": os.getuid(),
            "user": user,
            "home": os.path.expanduser("~"),
            "workdir": self.files.workdir,
            "boot_id": keeper.boot_id(),
            "clock_s": time.time(),
            "boottime_s": lease.boottime_s(),
            "free_bytes": disk.f_bavail * disk.f_frsize,
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
        }

    def link_up(self, link):
        """Say that we are this client's supervisor; one that it had before may hang in a dead connection."""
        lease.end_process(load(link))
        for path in keeper.every(os.path.dirname(link)):
            if not keeper.runs(load(path)):
                os.unlink(path)
        try:
            save(link, keeper.identity(os.getpid()), durable=False)  # a power cut ends us, too
        except OSError as error:
            if KINDS.get(error.errno) != "no_space":  # on a full disk results can still be fetched
                raise

    def remove(self, names=(), everything=False):
        """Remove what push and unpack made, by the names they were given; or all that is ours."""
        if not everything:
            return self.files.remove(names)
        self.must_hold()
        for folder in keeper.every(self.files.place("", "jobs")):
            keeper.end(folder)
        lease.restore(self.files.workdir)
        lease.end_process(load(self.files.place("", "janitor.json")))
        size, stay = self.files.remove_all()
        return {"removed_bytes": size, "stay": stay}

    def start(self, job, argv, env, timeout_s, max_output_bytes=1 << 26, cpus=()):
        """Start an agent under a keeper."""
        self.must_hold()
        words = [*argv, *env, *env.values()]
        if not argv or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise Refused("bad_request", "argv and env are made of text without NUL.")
        spec = {"argv": argv, "env": env, "cpus": list(cpus)}
        spec.update(timeout_s=float(timeout_s), max_output_bytes=int(max_output_bytes))
        return keeper.start(self.job(job), spec, self.files.workdir)

    def job(self, job):
        """The folder of a job."""
        return self.files.place("jobs", plain(job))

    def wait(self, job, for_s):
        """How a job ended; a further request ends the waiting, too."""
        return keeper.wait(self.job(job), 0 if self.wire.buffer else for_s, self.wire.source)

    def read(self, job, stream, offset, limit):
        """A piece of what a job printed."""
        if stream not in ("out", "err"):
            raise Refused("bad_request", "A job has out and err.")
        with open(os.path.join(self.job(job), stream), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size + offset) if offset < 0 else offset)
            return {"size": size}, zlib.compress(file.read(limit), 1)

    def stop(self, job):
        """End a job and forget it."""
        import shutil

        pid = keeper.end(self.job(job))
        shutil.rmtree(self.job(job), ignore_errors=True)
        return {"ended": [] if pid is None else [pid]}

    def sweep(self):
        """End and forget all jobs."""
        import shutil

        self.must_hold()
        pids = [keeper.end(folder) for folder in keeper.every(self.files.place("", "jobs"))]
        for folder in keeper.every(self.files.place("", "jobs")):
            shutil.rmtree(folder, ignore_errors=True)
        return {"ended": [pid for pid in pids if pid is not None]}

    def lease(self, action, owner=None, period_s=60.0, replaces=None):
        """Take, renew or release the device."""
        return lease.change(self.files.workdir, self.client, action, owner, float(period_s), replaces)

    def must_hold(self):
        """Refused while the device is somebody else's; without any lease everybody may."""
        if not is_marked(self.files.workdir):  # everything was removed
            return
        with lease.locked(self.files.workdir):
            lease.refuse_others(load(self.files.place("", "lease.json")), self.client, None, None)

    def settings(self, action, wanted=None, sudo=False):
        """Clocks and the like, as settings.py does it."""
        try:
            import settings
        except ImportError as error:
            raise Refused("bad_request", "settings.py was not sent to this device.") from error
        if action == "read":
            return settings.read(wanted)
        self.must_hold()
        if action == "apply":
            return settings.apply(wanted, sudo, self.files.workdir)
        if action == "restore":
            return settings.restore(self.files.workdir)
        raise Refused("bad_request", "Settings can be read, applied or restored.")

    def run(self, argv, env=None, timeout_s=10.0, limit=1 << 20):
        """A short command: what it printed, how it ended."""
        import subprocess

        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = subprocess.Popen(argv, cwd=self.files.workdir, env=env, start_new_session=True, **options)
        kept, deadline = {child.stdout: b"", child.stderr: b""}, time.monotonic() + timeout_s
        pipes = set(kept)
        try:
            while pipes and time.monotonic() < deadline:
                for pipe in select.select(pipes, [], [], max(0, deadline - time.monotonic()))[0]:
                    data = os.read(pipe.fileno(), BLOCK)
                    kept[pipe] += data[: limit - len(kept[pipe])]
                    if not data:
                        pipes.discard(pipe)
            how = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while os.waitid(os.P_PID, child.pid, how) is None and time.monotonic() < deadline:
                time.sleep(0.005)
            late = os.waitid(os.P_PID, child.pid, how) is None
        finally:
            os.killpg(child.pid, signal.SIGKILL)  # it is not reaped yet: the number is its own
            child.wait()
            child.stdout.close()
            child.stderr.close()
        out, err = (kept[pipe].decode("utf-8", "replace") for pipe in (child.stdout, child.stderr))
        return {"exit_code": child.returncode, "timed_out": late, "out": out, "err": err}


OWN = ("hello", "start", "wait", "read", "stop", "sweep", "remove", "lease", "settings", "run")
CALLS = {name: getattr(Supervisor, name) for name in OWN}
CALLS.update({name: getattr(Files, name) for name in ("have", "push", "pull", "unpack")})


def told(error):
    """An exception as the error of a call."""
    if isinstance(error, Refused):
        return dict(error.facts, kind=error.kind, message=error.message)
    if isinstance(error, OSError):
        where = "{}: ".format(error.filename) if error.filename else ""
        return {"kind": KINDS.get(error.errno, "failed"), "message": "{}{}.".format(where, error.strerror)}
    kinds = (TypeError, ValueError, KeyError, AttributeError)
    kind = "bad_request" if isinstance(error, kinds) else "failed"
    return {"kind": kind, "message": "{}: {}".format(type(error).__name__, error)}


def leave(*_):
    """A signal is like the end of input."""
    raise SystemExit


def main():
    """Serve until the host is gone; what it started lives on."""
    supervisor = Supervisor(Wire())
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    try:
        supervisor.serve()
    except (EOFError, BrokenPipeError, ConnectionError):
        pass
    finally:
        if supervisor.files and os.path.isdir(supervisor.files.workdir):
            link = supervisor.files.place("links", supervisor.client)
            if (load(link) or {}).get("pid") == os.getpid():
                os.unlink(link)
