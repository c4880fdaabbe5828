"""Whose a device is, and who cleans up when its host never comes back (SUPERVISOR.md)."""

import contextlib
import fcntl
import json
import os
import signal
import time

import keeper
from files import is_marked
from keeper import Refused, load, save


def boottime_s():
    """Seconds since the start of the system; no clock jump changes it, and it counts while asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def left_s(held):
    """How long a lease goes on; after a restart its whole period counts from the start."""
    if not held:
        return 0.0
    expires_s = held["expires_s"] if held["boot_id"] == keeper.boot_id() else held["period_s"]
    return expires_s - boottime_s()


def write(path, held):
    """In the room that it has already: a lease is renewed on a full disk, too. Under the lock."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(number, json.dumps(held).encode("ascii").ljust(4096), 0)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(workdir):
    """One at a time, over all supervisors and janitors of a workdir."""
    number = os.open(os.path.join(workdir, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
        fcntl.flock(number, fcntl.LOCK_UN)  # now, even if a child got a copy
    finally:
        os.close(number)


def refuse_others(held, client, owner, replaces):
    """Refused when the lease is somebody else's and not over."""
    left = left_s(held)
    if left <= 0 or client == held["client"] or (owner and held["owner"] in (owner, replaces)):
        return
    who = held["owner"]
    text = "The device is in use by {user}@{host} (pid {pid}, run {run}) for another {left:.0f} s."
    words = {key: who.get(key, "?") for key in ("user", "host", "pid", "run")}
    raise Refused("held", text.format(left=left, **words), owner=who, left_s=left)


def change(workdir, client, action, owner, period_s, replaces):
    """Take, renew or release; renewing one that was lost meanwhile takes it again, and says so."""
    path, watch = (os.path.join(workdir, name) for name in ("lease.json", "janitor.json"))
    if action not in ("take", "renew", "release") or (action != "release" and not isinstance(owner, dict)):
        raise Refused("bad_request", "A lease is taken or renewed with an owner, or released.")
    if len(json.dumps(owner)) > 2000:
        raise Refused("bad_request", "An owner is told in fewer words.")
    if action == "release" and not is_marked(workdir):  # everything was removed
        return {"held": False}
    with locked(workdir):
        held = load(path)
        mine = held is not None and held["client"] == client
        if action == "release":
            if mine:
                os.unlink(path)
                end_process(load(watch))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(watch)
            return {"held": False}
        refuse_others(held, client, owner, replaces)
        wanted = {"owner": owner, "client": client, "boot_id": keeper.boot_id(), "period_s": period_s}
        write(path, dict(wanted, expires_s=boottime_s() + period_s))
        if held is not None and not mine:  # its link may be half dead, and nobody would end it
            end_process(load(os.path.join(workdir, "links", held["client"])))
        if not keeper.runs(load(watch)):
            save(watch, keeper.identity(keeper.detach(lambda: janitor(workdir, path))))
        return {"held": True, "lapsed": action == "renew" and not mine}


def extend(workdir, client, work_s):
    """Let our own lease last for its period after a piece of work that keeps us from hearing the host."""
    path = os.path.join(workdir, "lease.json")
    if not os.path.exists(path):
        return
    with locked(workdir):
        held = load(path)
        if held and held["client"] == client and left_s(held) > 0:
            expires_s = boottime_s() + held["period_s"] + work_s
            write(path, dict(held, boot_id=keeper.boot_id(), expires_s=expires_s))


def janitor(workdir, path):
    """Sleep until the lease is over; then end what its owner left behind."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, lambda *_: None)
    while True:
        with locked(workdir):
            held = load(path)
            if held is None:
                return
            left = left_s(held)
            if left <= 0:
                clean(workdir, held)
                os.unlink(path)
                return
        time.sleep(left + 0.01)


def clean(workdir, held):
    """End the jobs and the supervisor of a host that is gone, put settings back."""
    for folder in keeper.every(os.path.join(workdir, "jobs")):
        keeper.end(folder, "Its host was away for longer than its lease.", abandoned=True)
    end_process(load(os.path.join(workdir, "links", held["client"])))
    restore(workdir)


def restore(workdir):
    """Put settings back, if some were changed."""
    if os.path.exists(os.path.join(workdir, "restore.json")):
        import settings

        settings.restore(workdir)


def end_process(who):
    """End a process of ours, if it is still that very one, within a bounded time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not keeper.runs(who) or who["pid"] == os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(who["pid"], number)
        limit = time.monotonic() + 2
        while keeper.runs(who) and time.monotonic() < limit:
            time.sleep(0.005)
