"""
Eight devices in one run against one: the part that does not need the host's CPU.

    python benchmarks/fleet.py [--rounds 3] [--devices 8]

Every device is a real OpenSSH server's login on loopback behind a link with a delay and a rate of its own.
Counted is the wall time of what `edgebench bench` does around its blocks: connect, take the lease, put back
and end what an earlier run left, ask what is provisioned, push agent and probe, probe, push a model, three
agents that only wait, put back, release. Nothing is inferred: timed blocks of eight devices on one machine
would share its CPU, which devices do not.

Must hold: eight take at most 1.5 × the time of one. Exit code 1 when that is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.core.types import Device  # noqa: E402
from harness.session import open_session  # noqa: E402
from tests.ssh.proxy import proxy  # noqa: E402
from tests.ssh.servers import Lab, new_key  # noqa: E402

LIMIT = 1.5
DELAY_S = 0.02  # one way
BYTES_PER_S = 1e6
MODEL_BYTES = 4 << 20
BLOCKS, BLOCK_S = 3, 1.0


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of one and of all, in turns (default 3)")
    parser.add_argument("--devices", type=int, default=8, help="default 8")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="eb-fleet-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lab = _lab(folder)
        stack.callback(lab.close)
        server = lab.server()
        links = [
            stack.enter_context(proxy(server.port, bytes_per_s=BYTES_PER_S, delay_s=DELAY_S))
            for _ in range(asked.devices)
        ]
        for link in links:
            lab.trust(server, link.port)
        times: dict[int, list[float]] = {1: [], asked.devices: []}
        for number in range(asked.rounds):
            for count, taken in times.items():
                names = [f"device{number}-{count}-{index}" for index in range(count)]
                devices = [
                    # Devices of one machine take turns, unless they are known to share it.
                    replace(lab.device(server, name, port=link.port, python=sys.executable), emulated=True)
                    for name, link in zip(names, links, strict=False)
                ]
                taken.append(_run(devices, folder))
                print(f"{count} device(s): {taken[-1]:.2f} s", flush=True)
    one, all_of_them = (statistics.median(values) for values in times.values())
    share = all_of_them / one
    verdict = "holds" if share <= LIMIT else "MISSED"
    print(f"{asked.devices} devices take {share:.2f} × the time of one: {verdict} (at most {LIMIT:g} ×)")
    return 0 if share <= LIMIT else 1


def _lab(folder: Path) -> Lab:
    """A HOME and a cache of its own: nothing of the user's is read or written."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    os.environ["HOME"] = str(home)
    os.environ["EDGEBENCH_CACHE"] = str(folder / "cache")
    os.environ.pop("SSH_AUTH_SOCK", None)
    return Lab(folder=folder, home=home, key=new_key(home / ".ssh" / "id_ed25519"))


def _run(devices: list[Device], folder: Path) -> float:
    """Seconds until all *devices*, one thread each as in a run, have done their part."""
    model = folder / "model.onnx"
    model.write_bytes(os.urandom(MODEL_BYTES))
    begin = time.perf_counter()
    with ThreadPoolExecutor(max_workers=len(devices)) as pool:
        for job in [pool.submit(_use, device, model) for device in devices]:
            job.result()
    return time.perf_counter() - begin


def _use(device: Device, model: Path) -> None:
    with open_session(device) as session:
        session.push(model)
        for _ in range(BLOCKS):
            with session.transport.stream(["/bin/sleep", f"{BLOCK_S}"], env={}, timeout_s=60.0) as agent:
                if list(agent) or agent.exit_code:
                    raise RuntimeError(f"{device.name}: {agent.exit_code}: {agent.errors}")


if __name__ == "__main__":
    sys.exit(main())
