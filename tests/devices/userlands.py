"""
Arm userlands from Debian's packages, without running any arm code to build them.

``mmdebstrap --variant=extract`` unpacks, and the few things that maintainer scripts would have done are
done here. What is unpacked is kept in the user's cache folder and only read: devices write to an overlay.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import filelock

from harness.core.places import cache_dir
from tests.devices.networks import sh
from tests.devices.stages import stage

SUITE = "bookworm"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BASE = "base-files base-passwd libc-bin bash dash coreutils grep sed findutils tar gzip util-linux mount"
#: A Pi 5's (nearest to an Orin's, too) and the newest 32-bit one that qemu-user has.
CPUS = {"aarch64": "cortex-a76", "arm": "cortex-a7"}
PACKAGES = [
    *BASE.split(" "),
    "hostname",
    "procps",
    "iproute2",
    "openssh-server",
    "openssh-sftp-server",
    "python3",
]
PACKAGES += ["libgomp1", "libstdc++6"]
#: Raspberry Pi OS comes with numpy; no index has a wheel of it for armv7l.
NUMPY = ["python3-numpy", "libblas3", "liblapack3"]
KERNEL = ["linux-image-arm64", "busybox-static"]
LIBRARIES = {"arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}


def kept(name: str, recipe: str) -> Path:
    """A folder of the user's cache for something that is made by this *recipe*."""
    return cache_dir() / "test-devices" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def register_binfmt() -> None:
    """Let the kernel run aarch64 and arm programs through qemu-user; registered already is fine."""
    if not (BINFMT / "register").exists():
        sh("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    for architecture, cpu in CPUS.items():
        interpreter = _interpreter(architecture, cpu)
        name = f"edgebench-{architecture}"
        if (BINFMT / name).exists():
            if f"interpreter {interpreter}\n" in (BINFMT / name).read_text():
                continue
            (BINFMT / name).write_text("-1")
        # What is registered last is asked first.
        rule = Path(f"/usr/lib/binfmt.d/qemu-{architecture}.conf").read_text().strip().split(":")
        (BINFMT / "register").write_text(":".join(["", name, *rule[2:6], str(interpreter), "POF"]))


def _interpreter(architecture: str, cpu: str) -> Path:
    """A qemu-user whose default processor is *cpu*; see qemu_cpu.c."""
    source = Path(__file__).with_name("qemu_cpu.c")
    qemu = Path(f"/usr/bin/qemu-{architecture}-static")
    about = f"{cpu} {qemu.stat().st_mtime_ns} {source.read_text()}"
    target = kept(f"qemu-{architecture}", about)
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            stub = target.with_suffix(".stub")
            defines = [f'-DCPU="{cpu}"', f'-DNAME="{architecture}-binfmt-P"']
            sh("cc", "-static", "-Os", "-Wall", *defines, "-o", str(stub), str(source))
            begin = stub.stat().st_size
            part = target.with_suffix(".part")
            part.write_bytes(stub.read_bytes() + qemu.read_bytes() + begin.to_bytes(8, "little"))
            part.chmod(0o755)
            part.rename(target)
    return target


def extracted(architecture: str, packages: Sequence[str], *, name: str) -> Path:
    """A folder with the files of *packages* and all that they depend on."""
    recipe = f"{SUITE} {architecture} {' '.join(packages)}\n{inspect.getsource(_configure)}"
    target = kept(name, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return target
    with filelock.FileLock(f"{target}.lock"), stage(f"{name} unpacked"):
        if target.exists():
            return target  # made by another session meanwhile
        for old in target.parent.glob(f"{name}-{'?' * 12}"):
            shutil.rmtree(old)
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            f"--architectures={architecture}",
            "--variant=extract",
        ]
        done = subprocess.run(
            [*command, f"--include={','.join(packages)}", SUITE, str(part), *_mirror()],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"mmdebstrap of {name}: {done.stderr[-2000:]}"
        if "base-passwd" in packages:
            _configure(part, LIBRARIES[architecture])
        part.chmod(0o755)
        part.rename(target)
    return target


def _mirror() -> list[str]:
    """Where this machine takes Debian's packages from; only the release itself, whose index never changes."""
    targets = sh(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"
    )
    for line in targets.splitlines():
        uri, suite, component = line.split()
        if (suite, component) == (SUITE, "main"):
            return [f"deb {uri} {SUITE} main"]
    return []  # not Debian: mmdebstrap knows a mirror


def userland(architecture: str, *, numpy: bool) -> Path:
    """Python and openssh of this architecture; no runtime of ours."""
    return extracted(architecture, [*PACKAGES, *(NUMPY if numpy else [])], name=f"{architecture}-userland")


def _configure(root: Path, libraries: str) -> None:
    """The few things that maintainer scripts would have done."""
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    etc, base = root / "etc", root / "usr/share/base-passwd"
    users = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\npi:x:1000:1000::/home/pi:/bin/bash\n"
    (etc / "passwd").write_text((base / "passwd.master").read_text() + users)
    (etc / "group").write_text((base / "group.master").read_text() + "pi:x:1000:\n")
    (etc / "shadow").write_text("root:*:19000::::::\npi:*:19000::::::\nsshd:*:19000::::::\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    home = root / "home/pi"
    home.mkdir(parents=True, mode=0o755)
    os.chown(home, 1000, 1000)
    for folder in ("proc", "sys", "dev", "run", "root", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name in ("blas", "lapack"):  # alternatives of libblas3 and liblapack3
        inner = f"usr/lib/{libraries}/{name}/lib{name}.so.3"
        if (root / inner).exists():
            (root / f"usr/lib/{libraries}/lib{name}.so.3").symlink_to(f"/{inner}")
