"""
Our push against the ``scp`` command, in one interleaved run: one file of 64 MiB, and 200 small ones.

    python benchmarks/push.py [--rounds 7] [--rate 100]

Both go to the same OpenSSH server on loopback with the same keys, into an empty folder, from the same files
with fresh content in every round. Counted is the wall time from "these files, please" until every file is
whole on the device: for scp that is the whole command (it connects and logs in, as it always does); for us
once with connecting, logging in and starting the supervisor ("push"), and once over a connection that is
open already, as it is in a run ("open"). We also hash each file on both sides and fsync it; scp does not.

Must hold: 64 MiB at 0.8 × scp's throughput or more, 200 files in less time than scp, both with connecting.
Exit code 1 when one is missed.
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
from collections.abc import Callable, Mapping
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
    parser.add_argument("--rounds", type=int, default=7, help="of each way, interleaved (default 7)")
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s of the slow link (default 100)")
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
        lab.trust(server, slow.port)
        good = True
        for place, port in (("loopback", server.port), (f"{asked.rate:g} Mbit/s", slow.port)):
            for what, files in (("64 MiB", {"big": BIG_BYTES}), ("200 files", _small())):
                good &= _compare(lab, server, port, f"{what}, {place}", files, rounds=asked.rounds)
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
    lab: Lab, server: Server, port: int, title: str, files: Mapping[str, int], *, rounds: int
) -> bool:
    """One line of the table; whether the promise holds."""
    ways: dict[str, Callable[[Mapping[str, Path], Path], float]] = {
        "scp": lambda sources, target: _scp(lab, server, port, sources, target),
        "push": lambda sources, target: _push(server, port, sources, target),
        "open": lambda sources, target: _push(server, port, sources, target, opened=True),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(ways) if number % 2 else list(ways)[::-1]:
            with tempfile.TemporaryDirectory(dir=lab.folder) as name:
                sources = {file: Path(name, file) for file in files}
                for file, path in sources.items():
                    path.write_bytes(os.urandom(files[file]))
                target = Path(name, "there")
                target.mkdir()
                for path in (Path(name), target):
                    path.chmod(0o777)  # the user there may be another one
                seconds = ways[way](sources, target)
            if number:  # the first one warms up
                times[way].append(seconds)
    middle = {way: statistics.median(values) for way, values in times.items()}
    size = sum(files.values()) / 2**20
    for way, seconds in middle.items():
        print(
            f"{title:<24}{way:<6}{seconds:8.3f} s  (from {min(times[way]):.3f} to {max(times[way]):.3f})"
            f"{size / seconds:8.1f} MiB/s  {middle['scp'] / seconds:5.2f} × scp"
        )
    limit = MIN_THROUGHPUT if len(files) == 1 else 1 / MAX_TIME
    good = middle["scp"] / middle["push"] >= limit
    print(
        f"{title:<24}{'holds' if good else 'MISSED'}: {limit:g} × scp's throughput is asked for\n", flush=True
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
