"""
Our push against the ``scp`` command, in one interleaved run: one file of 64 MiB, and 200 of 8 KiB.

    python benchmarks/push.py [--rounds 7] [--rate 100] [--delay 20]

Both go to the same OpenSSH server on loopback (as root: to an ordinary user), with the same key, into an
empty folder, with fresh random content in every round. Counted is the wall time from "these files, please"
until they are there: for scp that is the whole command, as it connects each time; for us ("push") it is
connecting, logging in, starting the supervisor, and the push. "open" is the push alone, over a connection
that is there already, as in a run; it is printed and not judged. Ours includes hashing every file on both
sides and making it durable; scp does neither. Our Python and its modules are loaded before, as they are in a
run; on the device they are loaded anew each time. What came is compared with what was sent, off the clock.

A round does each way once, in turning order, so that a busy machine is busy for all. It counts by its ratio,
scp's time / ours; the median of these is judged, which one disturbed round does not move. The same over a
slow link (with 16 MiB) and over a long one (200 files): a proxy on loopback, and fewer rounds.

Must hold: the big file at 0.8 × scp's throughput or more, 200 files in less time than scp, everywhere. Exit
code 1 when one is missed, 2 without scp. It takes 3 to 5 minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.core.types import Device
from harness.transports import ssh
from tests.ssh.proxy import proxy
from tests.ssh.servers import ROOT, Lab, Server, new_key

BIG_BYTES = 64 << 20
SMALL_FILES = 200
SMALL_BYTES = 8 << 10
MIN_THROUGHPUT = 0.8  # of scp's, for the big file
MAX_TIME = 1.0  # of scp's, for the small ones


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="on loopback, interleaved (default 7)")
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s of the slow link (default 100)")
    parser.add_argument("--delay", type=float, default=20.0, help="ms of a round trip (default 20)")
    asked = parser.parse_args()
    if not shutil.which("scp"):
        print("There is no scp to compare with.", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="eb-push-"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lab = _lab(folder)
        stack.callback(lab.close)
        server = lab.ordinary("/bin/bash") if ROOT else lab.server()
        slow = stack.enter_context(proxy(server.port, bytes_per_s=asked.rate * 1e6 / 8))
        long = stack.enter_context(proxy(server.port, delay_s=asked.delay / 2e3))
        for link in (slow, long):
            lab.trust(server, link.port)
        big, small = {"big": BIG_BYTES}, _small()
        few, judged = max(1, asked.rounds // 2), ("scp", "push")
        good = _compare(lab, server, server.port, "64 MiB, loopback", big, rounds=asked.rounds)
        good &= _compare(lab, server, server.port, "200 files, loopback", small, rounds=asked.rounds)
        rate, delay = f"{asked.rate:g} Mbit/s", f"{asked.delay:g} ms away"
        good &= _compare(
            lab, server, slow.port, f"16 MiB, {rate}", {"big": BIG_BYTES // 4}, rounds=few, ways=judged
        )
        good &= _compare(lab, server, slow.port, f"200 files, {rate}", small, rounds=few, ways=judged)
        good &= _compare(lab, server, long.port, f"200 files, {delay}", small, rounds=few, ways=judged)
    return 0 if good else 1


def _lab(folder: Path) -> Lab:
    """A HOME of its own: nothing of the user's ssh is read or written."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    os.environ["HOME"] = str(home)
    os.environ.pop("SSH_AUTH_SOCK", None)
    return Lab(folder=folder, home=home, key=new_key(home / ".ssh" / "id_ed25519"))


def _small() -> Mapping[str, int]:
    return {f"file{number:03}": SMALL_BYTES for number in range(SMALL_FILES)}


def _compare(
    lab: Lab,
    server: Server,
    port: int,
    title: str,
    files: Mapping[str, int],
    *,
    rounds: int,
    ways: Sequence[str] = ("scp", "push", "open"),
) -> bool:
    """One line of the table; whether the promise holds."""
    known: dict[str, Callable[[Mapping[str, Path], Path], float]] = {
        "scp": lambda sources, target: _scp(lab, server, port, sources, target),
        "push": lambda sources, target: _push(server, port, sources, target),
        "open": lambda sources, target: _push(server, port, sources, target, opened=True),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        turn = number % len(ways)
        for way in (*ways[turn:], *ways[:turn]):
            with tempfile.TemporaryDirectory(dir=lab.folder) as name:
                sources = {file: Path(name, file) for file in files}
                for file, path in sources.items():
                    path.write_bytes(os.urandom(files[file]))
                target = Path(name, "there")
                target.mkdir()
                for path in (Path(name), target):
                    path.chmod(0o777)  # the user there may be another one
                seconds = known[way](sources, target)
            if number:  # the first one warms up
                times[way].append(seconds)
    size = sum(files.values()) / 2**20
    for way, values in times.items():
        seconds = statistics.median(values)
        ratios = [scp / ours for scp, ours in zip(times["scp"], values, strict=True)]
        speed = f"{size / seconds:8.1f} MiB/s, median of {len(values)} rounds"
        print(f"{title:<24}{way:<6}{seconds:8.3f} s ({min(values):.3f} to {max(values):.3f}) {speed}")
        if way != "scp":
            ratio = f"{statistics.median(ratios):.2f} × scp ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{'':<30}{ratio}")
    limit = MIN_THROUGHPUT if len(files) == 1 else 1 / MAX_TIME
    found = statistics.median(scp / ours for scp, ours in zip(times["scp"], times["push"], strict=True))
    good = found >= limit if len(files) == 1 else found > limit
    more = "at least" if len(files) == 1 else "more than"
    print(
        f"{title:<24}{'holds' if good else 'MISSED'}: {found:.2f}; {more} {limit:g} is asked for\n",
        flush=True,
    )
    return good


def _scp(lab: Lab, server: Server, port: int, sources: Mapping[str, Path], target: Path) -> float:
    command = ["scp", "-q", "-F", "none", "-P", str(port), "-i", str(lab.key), "-o", "BatchMode=yes"]
    command += ["-o", f"UserKnownHostsFile={lab.known_hosts}"]
    command += [*map(str, sources.values()), f"{server.user}@127.0.0.1:{target}/"]
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begin
    _whole(sources, {name: target / name for name in sources})
    return seconds


def _push(
    server: Server, port: int, sources: Mapping[str, Path], target: Path, *, opened: bool = False
) -> float:
    options = {"host": "127.0.0.1", "port": port, "user": server.user, "workdir": str(target)}
    begin = time.perf_counter()
    transport = ssh.connect(Device(name="device", transport="ssh", options=options))
    try:
        if opened:
            begin = time.perf_counter()
        pushed = transport.push_all(sources)
        seconds = time.perf_counter() - begin
    finally:
        transport.close()
    _whole(sources, {name: Path(path) for name, path in pushed.paths.items()})
    return seconds


def _whole(sources: Mapping[str, Path], targets: Mapping[str, Path]) -> None:
    for name, path in sources.items():
        if targets[name].read_bytes() != path.read_bytes():
            raise AssertionError(f"{name} arrived differently")


if __name__ == "__main__":
    sys.exit(main())
