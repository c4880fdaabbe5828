"""Jobs on a device: a keeper process runs one agent, keeps what it prints and says how it ended."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
import traceback

BLOCK = 1 << 16
END_BYTES = 4096  # set aside when a job starts, so that its end can be written on a full disk
STOP_S = 5.0


class Refused(Exception):
    """(kind, sentence, more facts): becomes the error of a call."""

    def __init__(self, kind, message, **facts):
        super().__init__(message)
        self.kind, self.message, self.facts = kind, message, facts


def load(path):
    """A JSON file of ours; None where there is none or it is not whole."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def save(path, value):
    """Write a JSON file in one step: there is the old one or the new one, never half of one."""
    beside = "{}.{}".format(path, os.getpid())
    try:
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def boot_id():
    """Another one after each start of the system."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid):
    """(state, parent, session, start time in ticks since boot) of a process; None when there is none."""
    try:
        # The file of its first thread says the same, and an emulator (qemu-user) leaves it alone.
        with open("/proc/{0}/task/{0}/stat".format(pid), "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def identity(pid):
    """What tells a process from every other one that had or will have its number."""
    found = stat(pid)
    return {"pid": pid, "start": found[3] if found else None, "boot_id": boot_id()}


def runs(who):
    """Whether that very process still runs; a zombie does not."""
    if not who or who["boot_id"] != boot_id():
        return False
    found = stat(who["pid"])
    return found is not None and found[0] not in "ZX" and found[3] == who["start"]


def family(job):
    """Pids that a keeper's agent started and that run: all of its session, and all that descend from it."""
    keeper = job["keeper"]["pid"]
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    table = {pid: found for pid, found in ((pid, stat(pid)) for pid in numbers) if found}
    begin = job["keeper"]["start"]
    if job["keeper"]["boot_id"] != boot_id() or (keeper in table and table[keeper][3] != begin):
        return set()  # the number is somebody else's by now
    found = {pid for pid, (_, _, session, _) in table.items() if session == keeper}
    if keeper not in table and not runs(job["agent"]):  # it may have been somebody else's: ours stand here
        found = {pid for pid in found if folder_of(pid) == job["workdir"]}
    found |= {keeper} & set(table)
    while True:
        more = {pid for pid, (_, parent, _, _) in table.items() if parent in found} - found
        if not more:
            break
        found |= more
    return {pid for pid in found - {keeper} if table[pid][0] not in "ZX"}


def folder_of(pid):
    """The working directory of a process; None where that cannot be known."""
    try:
        return os.readlink("/proc/{}/cwd".format(pid))
    except OSError:
        return None


def end_family(job):
    """Kill what an agent is and started, until nothing is left; False when something withstands."""
    for _ in range(200):
        alive = family(job)
        if not alive:
            return True
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def detach(work):
    """Run *work* in a process that belongs to nobody and holds nothing of ours; gives its pid."""
    get, put = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                os.setsid()
                null = os.open(os.devnull, os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(null, number)
                os.dup2(put, 3)
                for name in os.listdir("/proc/self/fd"):
                    if int(name) > 3:
                        os.closerange(int(name), int(name) + 1)
                os.write(3, b"%d" % os.getpid())
                os.close(3)
                work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(put)
    os.waitpid(child, 0)
    with os.fdopen(get, "rb") as file:
        return int(file.read())


def start(folder, spec, workdir):
    """Start an agent under a keeper, once: the same *folder* again gives what the first start gave."""
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    try:
        os.mkdir(folder)
    except FileExistsError:
        return started(folder)
    try:
        os.mkfifo(os.path.join(folder, "done"))
        with open(os.path.join(folder, "end.part"), "wb") as file:
            file.write(b" " * END_BYTES)
            os.fsync(file.fileno())
        detach(lambda: keep(folder, spec, workdir))
        return started(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def started(folder):
    """What the keeper of *folder* says of its start; it says it within an instant."""
    for attempt in range(1000):
        said = load(os.path.join(folder, "pid"))
        if said and "error" in said:
            raise Refused(*said["error"])
        if said:
            return {"pid": said["agent"]["pid"], "cpus": said["cpus"]}
        time.sleep(0.002 if attempt < 500 else 0.02)
    raise Refused("failed", "The keeper of {} did not start.".format(os.path.basename(folder)))


def keep(folder, spec, workdir):
    """The whole life of a keeper."""
    log = os.open(os.path.join(folder, "keeper.log"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 2)
    stopped = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN: that the agent would inherit
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    bell, rung = os.pipe()
    for number in (bell, rung):
        os.set_blocking(number, False)
    signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
    adopt_orphans()
    done = os.open(os.path.join(folder, "done"), os.O_RDWR)  # closing it wakes whoever waits
    try:
        agent, pipes, cpus = launch(folder, spec, workdir)
    except Refused as error:
        return save(os.path.join(folder, "pid"), {"error": [error.kind, error.message]})
    job = {"keeper": identity(os.getpid()), "agent": identity(agent), "cpus": cpus, "workdir": workdir}
    try:
        save(os.path.join(folder, "pid"), job)
        end = Watch(agent, pipes, bell, spec, stopped).run(lambda: end_family(job))
    finally:
        end_family(job)
        os.waitpid(agent, 0)
    if stopped and end["why"] is None:
        end.update(load(os.path.join(folder, "why")) or {"why": "It was stopped."})
    return write_end(folder, end, done)


def write_end(folder, end, done):
    """Say how it ended, in the room that was set aside for it."""
    with open(os.path.join(folder, "end.part"), "r+b") as file:
        file.write(json.dumps(end).encode("utf-8")[:END_BYTES])
        file.flush()
        with contextlib.suppress(OSError):  # a full disk; the file is there all the same
            os.fsync(file.fileno())
    os.rename(os.path.join(folder, "end.part"), os.path.join(folder, "end"))
    os.close(done)


def adopt_orphans():
    """Become the parent of what the agent's children leave behind, where Python has ctypes."""
    try:
        import ctypes
    except ImportError:  # then a process that leaves the session is found by nobody
        return
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def launch(folder, spec, workdir):
    """The agent: (pid, its two outputs with the files they go to, the CPUs it may use)."""
    files = [os.open(os.path.join(folder, n), os.O_WRONLY | os.O_CREAT, 0o600) for n in ("out", "err")]
    before, cpus = os.sched_getaffinity(0), spec["cpus"]
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise Refused("bad_request", "CPUs {} cannot be used: {}.".format(cpus, error.strerror)) from error
    ends = [os.pipe(), os.pipe()]
    try:
        child = subprocess.Popen(
            spec["argv"],
            cwd=workdir,
            env=spec["env"],
            stdin=subprocess.DEVNULL,
            stdout=ends[0][1],
            stderr=ends[1][1],
            preexec_fn=os.setpgrp,  # in the keeper's session, out of the keeper's group
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused("failed", "{} cannot be started: {}.".format(spec["argv"][0], why)) from error
    finally:
        os.sched_setaffinity(0, before)
        for _, put in ends:
            os.close(put)
    child.returncode = 0  # its end is read with waitid, which leaves its number reserved
    for get, _ in ends:
        os.set_blocking(get, False)
    allowed = sorted(os.sched_getaffinity(child.pid))
    return child.pid, {ends[0][0]: files[0], ends[1][0]: files[1]}, allowed


class Watch:
    """What a process prints goes to files, until it ends, prints too much, takes too long or is stopped."""

    def __init__(self, pid, pipes, bell, spec, stopped):
        self.pid, self.pipes, self.bell, self.stopped = pid, dict(pipes), bell, stopped
        self.deadline = time.monotonic() + spec["timeout_s"]
        self.limit, self.timeout_s, self.size, self.why = spec["max_output_bytes"], spec["timeout_s"], 0, None
        self.late = False

    def run(self, end_all):
        """Sleep until something happens; how it ended."""
        while not self.over():
            left = max(0.0, self.deadline - time.monotonic())
            ready = select.select([self.bell, *self.pipes], [], [], left)[0]
            if self.bell in ready:
                os.read(self.bell, BLOCK)
            for number in set(ready) - {self.bell}:
                self.take(number)
        end_all()
        for number in list(self.pipes):
            while number in self.pipes and self.why is None and self.take(number):
                pass
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        return {"exit_code": code, "timed_out": self.late, "output_bytes": self.size, "why": self.why}

    def over(self):
        """Whether there is a reason to end."""
        while True:  # reap orphans; the agent itself stays, so that its number is nobody else's
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None or info.si_pid == self.pid:
                break
            os.waitpid(info.si_pid, 0)
        if info is not None or self.why or self.stopped:
            return True
        if time.monotonic() >= self.deadline:
            self.late, self.why = True, "It did not end within {:g} s.".format(self.timeout_s)
        return self.late

    def take(self, number):
        """Move what is there from a pipe to its file; False when nothing is."""
        try:
            data = os.read(number, BLOCK)
        except BlockingIOError:
            return False
        if not data:
            del self.pipes[number]
            return False
        view = room = memoryview(data)[: self.limit - self.size]
        self.size += len(room)
        try:
            while view:
                view = view[os.write(self.pipes[number], view) :]
        except OSError as error:
            self.why = "What it prints cannot be kept: {}.".format(error.strerror)
        if len(data) > len(room) and self.why is None:
            self.why = "It printed more than {} bytes.".format(self.limit)
        return True


def wait(folder, for_s, interrupt):
    """How a job ended, as soon as it did; running after *for_s*, or once *interrupt* can be read."""
    try:
        done = os.open(os.path.join(folder, "done"), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Refused("not_found", "There is no job {}.".format(os.path.basename(folder))) from error
    try:
        job = load(os.path.join(folder, "pid")) or {}
        end = load(os.path.join(folder, "end"))
        if end is None and runs(job.get("keeper")):
            select.select([done, interrupt], [], [], for_s)
            end = load(os.path.join(folder, "end"))
    finally:
        os.close(done)
    if end is not None:
        return dict(end, running=False)
    if runs(job.get("keeper")):
        return {"running": True}
    if job.get("keeper"):
        end_family(job)
    why = "Its keeper was killed, or the device restarted."
    return {"running": False, "exit_code": None, "timed_out": False, "output_bytes": None, "why": why}


def end(folder, why="It was stopped.", abandoned=False):
    """End a job's processes within a bounded time, its keeper too; the pid of an agent that still ran."""
    job = load(os.path.join(folder, "pid"))
    if not job or "error" in job:
        return None
    alive = family(job)
    if runs(job["keeper"]):
        with contextlib.suppress(OSError):  # on a full disk it ends all the same, without the reason
            save(os.path.join(folder, "why"), {"why": why, "abandoned": abandoned})
        with contextlib.suppress(ProcessLookupError):
            os.kill(job["keeper"]["pid"], signal.SIGTERM)
        limit = time.monotonic() + STOP_S
        while runs(job["keeper"]) and time.monotonic() < limit:
            time.sleep(0.01)
        if runs(job["keeper"]):
            end_family(job)
            os.kill(job["keeper"]["pid"], signal.SIGKILL)
    else:
        end_family(job)
    return job["agent"]["pid"] if alive else None


def every(jobs):
    """The folders of all jobs."""
    try:
        return [os.path.join(jobs, name) for name in sorted(os.listdir(jobs))]
    except FileNotFoundError:
        return []
