"""The supervisor's calls on a device: names, files, commands, whose it is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import SupervisorError
from harness.transports._supervisor import Supervisor
from tests.agents.links import OWNER, Links, alive, eventually, python, supervisor

OTHER = {"user": "bob", "host": "lab", "pid": 8, "run": "day"}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Supervisor]:
    device = supervisor(Links(), tmp_path)
    yield device
    device.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Supervisor]:
    """A second host at the same device."""
    device = supervisor(Links(), tmp_path)
    yield device
    device.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def refused(kind: str, device: Supervisor, method: str, **arguments: Any) -> SupervisorError:
    with pytest.raises(SupervisorError) as caught:
        device.call(method, **arguments)
    assert caught.value.kind == kind, caught.value
    return caught.value


def file_of(folder: Path, content: bytes, name: str = "source") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_hello_says_what_it_needs(there: Supervisor, tmp_path: Path) -> None:
    facts = there.call("hello")
    assert facts["workdir"] == there.workdir == str(tmp_path / "work")
    assert facts["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts["free_bytes"] > 0
    assert facts["uid"] == os.getuid()


def test_a_call_that_does_not_exist_is_refused(there: Supervisor) -> None:
    refused("bad_request", there, "format_disk")
    refused("bad_request", there, "wait")
    refused("bad_request", there, "wait", job="x", for_s=0, colour="red")
    assert there.call("run", argv=["true"])["exit_code"] == 0


BAD_NAMES = ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "nul\0", "a/", "x" * 2000]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(there: Supervisor, tmp_path: Path, name: str) -> None:
    source = file_of(tmp_path, b"x")
    with pytest.raises(SupervisorError) as caught:
        there.push(source, name)
    assert caught.value.kind == "bad_request"
    refused("bad_request", there, "remove", names=[name])
    refused("bad_request", there, "unpack", name=name, into="site")
    refused("bad_request", there, "unpack", name="x", into=name)
    refused("bad_request", there, "start", job=name, argv=["true"], env={}, timeout_s=1)


@pytest.mark.parametrize("name", ["x; touch owned", "a'b\"c", "two\nlines", "ä ö", "below/a/folder", "-rf"])
def test_odd_names_are_just_names(there: Supervisor, tmp_path: Path, name: str) -> None:
    path = Path(there.push(file_of(tmp_path, b"content"), name))
    assert path == Path(there.workdir, "files", name)
    assert path.read_bytes() == b"content"
    there.pull(name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_link_leads_nothing_out_of_the_workdir(there: Supervisor, tmp_path: Path) -> None:
    Path(there.workdir, "files", "out").symlink_to(tmp_path)
    with pytest.raises(SupervisorError, match="leaves the workdir"):
        there.push(file_of(tmp_path, b"x"), "out/owned")
    assert not (tmp_path / "owned").exists()


def test_only_what_is_missing_is_sent(there: Supervisor, tmp_path: Path) -> None:
    files = {f"file{i}": file_of(tmp_path, os.urandom(i * 1000), f"s{i}") for i in range(50)}
    first = there.push_all(files)
    assert (first.sent_files, first.sent_bytes) == (50, sum(i * 1000 for i in range(50)))
    again = there.push_all(files)
    assert (again.sent_files, again.sent_bytes) == (0, 0)
    assert again.paths == first.paths
    Path(first.paths["file7"]).write_bytes(b"x" * 7000)  # damaged, its size as before
    mended = there.push_all(files)
    assert (mended.sent_files, mended.sent_bytes) == (1, 7000)
    assert all(Path(first.paths[name]).read_bytes() == path.read_bytes() for name, path in files.items())
    assert not list(Path(there.workdir, "parts").iterdir())


def test_a_corrupt_part_is_sent_anew(there: Supervisor, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    source = file_of(tmp_path, content)
    part = f"{hashlib.sha256(content).hexdigest()}-{__import__('zlib').crc32(b'name'):08x}"
    Path(there.workdir, "parts", part).write_bytes(b"x" * 60_000)
    pushed = there.push_all({"name": source})
    assert Path(pushed.paths["name"]).read_bytes() == content
    assert pushed.sent_bytes == 140_000
    assert not list(Path(there.workdir, "parts").iterdir())


def test_a_command_is_run(there: Supervisor) -> None:
    code = "import os, sys; print(os.environ.get('A'), os.getcwd()); sys.stderr.write('e'); sys.exit(3)"
    done = there.call("run", argv=python(code), env={"A": "1"}, timeout_s=20)
    assert done["exit_code"] == 3
    assert not done["timed_out"]
    assert (done["out"], done["err"]) == (f"1 {there.workdir}\n", "e")
    late = there.call("run", argv=["sh", "-c", "echo $$; sleep 60 & wait"], timeout_s=0.5)
    assert late["timed_out"]
    assert not alive(int(late["out"]))
    endless = there.call("run", argv=["yes"], timeout_s=0.5, limit=1000)
    assert len(endless["out"]) == 1000
    refused("not_found", there, "run", argv=["/no/such/program"])


def test_a_wheel_is_unpacked_and_removed(there: Supervisor, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/__init__.py", "x = 1")
        archive.writestr("package/tests/big.py", "x" * 1000)
        info = zipfile.ZipInfo("bin/tool")
        info.external_attr = 0o755 << 16
        archive.writestr(info, "#!/bin/sh\n")
    there.push(wheel, "x.whl")
    for _ in range(2):  # again without harm
        done = there.call("unpack", name="x.whl", into="site/one", skip=["*/tests/*"])
        assert (done["files"], done["bytes"]) == (2, 15)
    site = Path(there.workdir, "site", "one")
    assert (site / "package/__init__.py").read_text() == "x = 1"
    assert os.access(site / "bin/tool", os.X_OK)
    assert not (site / "package/tests").exists()
    removed = there.call("remove", names=["x.whl", "site", "was never there"])["removed_bytes"]
    assert removed == 15 + wheel.stat().st_size
    assert not (Path(there.workdir) / "site").exists()
    for name in ("files", "jobs/x", "lease.json"):
        refused("bad_request", there, "remove", names=[name])


def test_a_wheel_that_leads_elsewhere_is_refused(there: Supervisor, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr("../../owned", "x")
    there.push(tmp_path / "evil.whl", "evil.whl")
    refused("bad_request", there, "unpack", name="evil.whl", into="site")
    there.push(file_of(tmp_path, b"no zip"), "no.whl")
    refused("bad_request", there, "unpack", name="no.whl", into="site")
    assert not list(tmp_path.rglob("owned"))


def test_everything_is_removed(there: Supervisor, tmp_path: Path) -> None:
    there.call("lease", action="take", owner=OWNER, period_s=600)
    there.push(file_of(tmp_path, b"x" * 100), "name")
    with there.stream(["sleep", "600"], env={}, timeout_s=600) as agent:
        pid = agent.pid
        assert there.call("remove", everything=True)["removed_bytes"] > 100
        assert not alive(pid)
    assert there.call("lease", action="release") == {"held": False}
    there.close()
    assert not (tmp_path / "work").exists()


def test_a_full_disk_is_typed(small_disk: Path, tmp_path: Path) -> None:
    device = supervisor(Links(), small_disk)
    with pytest.raises(SupervisorError) as caught:
        device.push(file_of(tmp_path, os.urandom(6 << 20)), "big")
    assert caught.value.kind == "no_space"
    assert not list((small_disk / "work" / "parts").iterdir())
    device.push(file_of(tmp_path, b"small"), "small")
    device.close()


def test_a_read_only_workdir_is_typed(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    device = supervisor(Links(), small_disk)
    refused("read_only", device, "hello")
    device.close()


def test_another_owner_is_told_who_has_it(there: Supervisor, other: Supervisor) -> None:
    assert there.call("lease", action="take", owner=OWNER, period_s=600)["held"]
    error = refused("held", other, "lease", action="take", owner=OTHER, period_s=600)
    assert "in use by ann@desk (pid 7, run night)" in error.message
    assert isinstance(error.facts, dict)
    assert error.facts["owner"] == OWNER
    assert 0 < error.facts["left_s"] <= 600
    refused("held", other, "sweep")
    refused("held", other, "start", job="x", argv=["true"], env={}, timeout_s=1)
    refused("held", other, "remove", everything=True)
    assert there.call("lease", action="take", owner=OWNER, period_s=600)["held"]
    other.call("lease", action="release")  # not its own: nothing happens
    refused("held", other, "lease", action="take", owner=OTHER, period_s=600)
    there.call("lease", action="release")
    assert other.call("lease", action="take", owner=OTHER, period_s=600)["held"]
    other.call("lease", action="release")


def test_the_lease_of_a_dead_owner_can_be_replaced(there: Supervisor, other: Supervisor) -> None:
    there.call("lease", action="take", owner=OWNER, period_s=600)
    assert other.call("lease", action="take", owner=OTHER, period_s=600, replaces=OWNER)["held"]
    refused("held", there, "lease", action="renew", owner=OWNER, period_s=600)
    other.call("lease", action="release")


def test_one_of_many_gets_the_lease(tmp_path: Path) -> None:
    hosts = [supervisor(Links(), tmp_path) for _ in range(6)]
    for host in hosts:
        host.call("hello")
    won: list[int] = []
    start = threading.Barrier(len(hosts))

    def take(number: int) -> None:
        start.wait()
        try:
            hosts[number].call("lease", action="take", owner={**OTHER, "pid": number}, period_s=600)
        except SupervisorError as error:
            assert error.kind == "held"
        else:
            won.append(number)

    for _ in range(5):
        threads = [threading.Thread(target=take, args=[number]) for number in range(len(hosts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        hosts[won.pop()].call("lease", action="release")
    for host in hosts:
        host.close()


@pytest.mark.parametrize(("period_s", "free"), [(0.0, True), (1e9, False)])
def test_after_a_restart_a_lease_counts_from_the_start(
    there: Supervisor, period_s: float, free: bool
) -> None:
    path = Path(there.workdir, "lease.json")
    held = {"owner": OTHER, "client": "gone", "boot_id": "another", "period_s": period_s, "expires_s": 1e9}
    path.write_text(json.dumps(held))
    if free:
        assert there.call("lease", action="take", owner=OWNER, period_s=600)["held"]
        there.call("lease", action="release")
    else:
        refused("held", there, "lease", action="take", owner=OWNER, period_s=600)


def test_a_lease_that_nobody_renews_is_over(tmp_path: Path) -> None:
    links = Links()
    there = supervisor(links, tmp_path)
    there.call("lease", action="take", owner=OWNER, period_s=0.5)
    janitor = json.loads(Path(there.workdir, "janitor.json").read_text())["pid"]
    there.close()  # and no release: as if the host had died
    lease = tmp_path / "work" / "lease.json"
    assert eventually(lambda: not lease.exists() and not alive(janitor))
    other = supervisor(Links(), tmp_path)
    assert other.call("lease", action="take", owner=OTHER, period_s=600)["held"]
    other.call("lease", action="release")
    other.close()


def test_a_lease_lasts_while_a_long_command_runs(there: Supervisor) -> None:
    """The supervisor hears nothing of its host meanwhile; without this its janitor would end it."""
    there.call("lease", action="take", owner=OWNER, period_s=0.5)
    done = there.call("run", argv=["sh", "-c", "sleep 2; cat lease.json"], timeout_s=60)
    assert done["exit_code"] == 0
    assert json.loads(done["out"])["owner"] == OWNER
    assert there.incidents == ()
    there.call("lease", action="release")


def test_a_released_lease_leaves_no_janitor(there: Supervisor) -> None:
    there.call("lease", action="take", owner=OWNER, period_s=600)
    janitor = json.loads(Path(there.workdir, "janitor.json").read_text())["pid"]
    assert alive(janitor)
    there.call("lease", action="release")
    assert not alive(janitor)
