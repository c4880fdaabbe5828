"""The test devices: made once per session, started per test; skipped where they cannot be made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.devices import device_trees, stages, userlands
from tests.devices.machines import Image, Machine, image, machine
from tests.devices.networks import Fleet, fleet
from tests.devices.nodes import Node, Userland, keygen, node

PROGRAMS = (
    *("sshd", "ip", "iptables", "tc", "unshare", "nsenter", "setpriv", "ssh-keygen"),
    *("mmdebstrap", "qemu-aarch64-static", "cc", "aarch64-linux-gnu-g++"),
    *("qemu-system-aarch64", "mke2fs", "depmod", "cpio"),
)
StartNode = Callable[..., Node]


def why_not() -> str:
    """Why there can be no test devices here; empty if there can."""
    if os.geteuid() != 0:
        return "the test devices need root: network namespaces, mounts, binfmt"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"the test devices need {', '.join(missing)}: run tests/devices/packages.sh"
    return ""


@pytest.hookimpl(tryfirst=True)  # before the markers are asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark ours, keep those that share the machine on one worker, begin with those that take longest."""
    first = ["test_vm.py", "test_provision.py"]
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.devices)
            if "vm" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("vm"))
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Under xdist: what a worker has measured comes to the one that prints."""
    stages.add(getattr(node, "workeroutput", {}).get("stages", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["stages"] = stages.table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows := stages.table():
        terminalreporter.section("test devices: set-up and figures")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that an ordinary user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="edgebench-devices-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def network() -> Iterator[Fleet]:
    with fleet() as made:
        yield made


@pytest.fixture(scope="session")
def user_key(place: Path) -> Path:
    """The key that every device lets in."""
    keygen(place / "user_key")
    return place / "user_key"


@pytest.fixture
def start(network: Fleet, place: Path, user_key: Path) -> Iterator[StartNode]:
    """``start(name, userland=None) -> Node``: devices that end with the test."""
    with ExitStack() as stack:

        def start_one(name: str, *, userland: Userland | None = None) -> Node:
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place)) / "device"
            folder.parent.chmod(0o755)
            made = node(network.net(), folder, user_key, name=name, userland=userland)
            return stack.enter_context(made)

        yield start_one


@pytest.fixture(scope="session")
def arm64() -> Path:
    userlands.register_binfmt()
    return userlands.userland("arm64", numpy=False)


@pytest.fixture(scope="session")
def armhf() -> Path:
    userlands.register_binfmt()
    return userlands.userland("armhf", numpy=True)


@pytest.fixture(scope="session")
def pi5(arm64: Path, place: Path) -> Userland:
    """Like a Pi 5 under Raspberry Pi OS: python3 and openssh, nothing of ours."""
    fake = device_trees.pi5(place / "pi5")
    return Userland(lower=arm64, fake=fake, overlay=device_trees.PI_FILES)


@pytest.fixture(scope="session")
def orin(arm64: Path, place: Path) -> Userland:
    """Like a Jetson Orin Nano: the sensor tree and NVIDIA's tools."""
    fake = device_trees.orin(place / "orin")
    return Userland(lower=arm64, fake=fake, overlay=device_trees.ORIN_FILES)


@pytest.fixture(scope="session")
def pi3(armhf: Path, place: Path) -> Userland:
    """Like a Pi 3 under 32-bit Raspberry Pi OS."""
    fake = device_trees.pi3_32bit(place / "pi3")
    return Userland(lower=armhf, fake=fake, overlay=device_trees.PI_FILES)


@pytest.fixture(scope="session")
def vm_image(arm64: Path) -> Image:
    return image()


@pytest.fixture(scope="session")
def vm(network: Fleet, place: Path, user_key: Path, vm_image: Image) -> Iterator[Machine]:
    with ExitStack() as stack:
        with stages.stage("vm booted, login works"):
            made = stack.enter_context(machine(network.net(), place / "vm", user_key, vm_image))
        yield made
