"""
PID 1 of a test device: mounts its file system, runs its sshd, reaps what dies.

It runs in mount, PID and UTS namespaces of its own: when it is killed, nothing stays mounted or running.
``python device_init.py CONFIG.json``; standard library only. Signals:

- USR1: sshd and all its connections end at once, and sshd starts again. Other processes go on.
- USR2: a reboot. Every process ends, the boot id changes, /run is empty, and after *down_s* sshd starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

SIGNALS = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2}


def main() -> None:
    """Mount, start, and then serve signals for ever."""
    config = json.loads(Path(sys.argv[1]).read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    subprocess.run(["hostname", config["hostname"]], check=True)
    new_boot_id(config)
    for command in config["mounts"]:
        subprocess.run(command, check=True)
    start_sshd(config)
    while True:
        received = signal.sigwait(SIGNALS)
        if received == signal.SIGUSR1:
            for pid in pids():
                if "sshd" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            start_sshd(config)
        elif received == signal.SIGUSR2:
            os.kill(-1, signal.SIGKILL)  # everybody in this PID namespace but us
            new_boot_id(config)
            time.sleep(config["down_s"])
            start_sshd(config)
        reap()


def new_boot_id(config: dict[str, Any]) -> None:
    """Written in place: the file is bind-mounted over the kernel's."""
    Path(config["boot_id"]).write_text(f"{uuid.uuid4()}\n")


def start_sshd(config: dict[str, Any]) -> None:
    """Start sshd in the device's file system, with an empty /run."""
    reap()
    run = Path(config["run"])
    shutil.rmtree(run / "sshd", ignore_errors=True)
    (run / "sshd").mkdir(parents=True)
    subprocess.Popen([*config["enter"], *config["sshd"]], stdin=subprocess.DEVNULL)


def pids() -> list[int]:
    """Every process of this namespace but us."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and path.name != "1"]


def reap() -> None:
    """Collect dead children, adopted ones too."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
