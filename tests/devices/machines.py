"""A virtual machine with its own arm64 kernel: real memory figures, clock, reset and reboot."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from tests.devices.networks import Net, sh, wait_until
from tests.devices.stages import stage
from tests.devices.userlands import KERNEL, extracted, kept, userland

IMAGE_MIB = 1600
MEMORY_MIB = 1024
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "crc32c_generic")
INITRAMFS = """#!/bin/sh
export PATH=/bin
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
while read module; do $B insmod /lib/modules/$module; done < /modules
$B mount -t ext4 -o rw,noatime /dev/vda /mnt || { echo MOUNT FAILED; exec sh; }
$B umount /proc /sys; $B mount --move /dev /mnt/dev
exec $B switch_root /mnt /sbin/test-init
"""
#: Keys come on a second disk, a plain tar: the image is the same for every session.
INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /run/edgebench
tar -x -C /run/edgebench -f /dev/vdb
hostname edgebench-vm
ip link set lo up
for i in $(seq 100); do N=$(ls /sys/class/net | grep -v ^lo | head -1); [ -n "$N" ] && break; sleep .1; done
ip link set $N up; ip address add 10.0.2.15/24 dev $N; ip route add default via 10.0.2.2
chown -R root:root /run/edgebench; chmod 600 /run/edgebench/host_key
/usr/sbin/sshd -D -e -f /run/edgebench/sshd_config &
echo "test-init: sshd started at $(cut -d' ' -f1 /proc/uptime) s"
while :; do wait -n || sleep 1; done
"""
SSHD = """HostKey /run/edgebench/host_key
AuthorizedKeysFile /run/edgebench/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
StrictModes no
PrintMotd no
MaxSessions 100
ClientAliveInterval 5
ClientAliveCountMax 3
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots."""

    kernel: Path
    initrd: Path
    disk: Path


def image() -> Image:
    """Kernel, initramfs and disk, kept in the user's cache folder."""
    recipe = f"{userland('arm64', numpy=False)}\n{Path(__file__).read_text()}"
    folder = kept("vm", recipe)
    made = Image(folder / "vmlinuz", folder / "initrd.gz", folder / "disk.ext4")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if folder.exists():
            return made
        for old in folder.parent.glob(f"vm-{'?' * 12}"):
            shutil.rmtree(old)
        packages = extracted("arm64", KERNEL, name="arm64-kernel")
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with stage("vm image made"):
            shutil.copy(next((packages / "boot").glob("vmlinuz-*")), part / "vmlinuz")
            _initramfs(packages, part)
            _disk(userland("arm64", numpy=False), part)
        part.rename(folder)
    return made


def _initramfs(packages: Path, out: Path) -> None:
    version = next((packages / "lib/modules").iterdir()).name
    sh("depmod", "-b", str(packages), version)
    depends = {}
    for line in (packages / "lib/modules" / version / "modules.dep").read_text().splitlines():
        path, needs = line.split(":")
        depends[path] = needs.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in depends}
    order: list[str] = []
    for name in MODULES:
        if name in by_name:  # the others are built in
            path = by_name[name]
            order += [p for p in (*reversed(depends[path]), path) if p not in order]
    tree = out / "initramfs"
    for name in ("bin", "proc", "sys", "dev", "mnt", "lib/modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(packages / "bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for path in order:
        shutil.copy(packages / "lib/modules" / version / path, tree / "lib/modules")
    (tree / "modules").write_text("".join(f"{Path(path).name}\n" for path in order))
    (tree / "init").write_text(INITRAMFS)
    (tree / "init").chmod(0o755)
    pack = 'cd "$1" && find . | cpio -o -H newc --quiet | gzip -1 > "$2"'
    sh("sh", "-c", pack, "sh", str(tree), str(out / "initrd.gz"))
    shutil.rmtree(tree)


def _disk(root: Path, out: Path) -> None:
    disk, tree = out / "disk.ext4", out / "tree"
    sh("cp", "-a", str(root), str(tree))
    (tree / "sbin/test-init").write_text(INIT)
    (tree / "sbin/test-init").chmod(0o755)
    with disk.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk))
    shutil.rmtree(tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A running virtual machine; its sshd is at port 22 of its namespace's address."""

    net: Net
    folder: Path
    user_key: Path
    _qemu: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Its IP address, as seen from the host."""
        return self.net.address

    @property
    def host_key(self) -> str:
        """Type and key as in known_hosts."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def monitor(self, command: str) -> str:
        """Give QEMU's monitor a command, e.g. ``system_reset`` or ``set_link n0 off``."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.folder / "monitor"))
            received = _until_prompt(connection)
            connection.sendall(f"{command}\n".encode())
            received = _until_prompt(connection)
        return received.replace("(qemu)", "").strip()

    def run(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a shell command there, as root over a connection of its own; its output."""
        options = ["-i", str(self.user_key), "-o", f"UserKnownHostsFile={self.folder}/known_hosts"]
        options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-F", "/dev/null"]
        done = subprocess.run(
            ["ssh", *options, f"root@{self.address}", command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}: {done.stderr.strip()}"
        return done.stdout

    @property
    def boot_id(self) -> str:
        """What its kernel says."""
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()

    def wait_for_sshd(self, *, timeout_s: float = 120.0) -> None:
        """Until a login works."""

        def answers() -> bool:
            assert self._qemu.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                return bool(self.boot_id)
            except (AssertionError, subprocess.TimeoutExpired):
                return False

        wait_until(answers, f"sshd in the machine; see {self.folder}/console", timeout_s=timeout_s)

    def processes(self, *words: str) -> list[str]:
        """Command lines of live processes there that have all *words*, besides the kernel and sshd."""
        lines = self.run("ps -e -o ppid=,stat=,comm=,args=").splitlines()
        found = []
        for line in lines:
            parent, state, name, argv = line.split(None, 3)
            boring = (
                parent in {"0", "2"} or state.startswith("Z") or name in {"sshd", "test-init", "ps", "sleep"}
            )
            if not boring and "ps -e -o" not in argv and all(word in argv for word in words):
                found.append(argv)
        return found


def _until_prompt(connection: socket.socket) -> str:
    received = b""
    while not received.rstrip().endswith(b"(qemu)"):
        more = connection.recv(4096)
        assert more, f"the monitor hung up after {received!r}"
        received += more
    return received.decode()


@contextmanager
def machine(net: Net, folder: Path, user_key: Path, boots: Image) -> Iterator[Machine]:
    """A machine in *net* that has just been switched on; what it writes lives until it is switched off."""
    folder.mkdir(parents=True)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
    (folder / "authorized_keys").write_text(user_key.with_suffix(".pub").read_text())
    (folder / "sshd_config").write_text(SSHD)
    names = ("host_key", "authorized_keys", "sshd_config")
    sh("tar", "-c", "-C", str(folder), "-f", str(folder / "keys.tar"), *names)
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"{net.address} {' '.join(public.split()[:2])}\n")
    command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", str(MEMORY_MIB)]
    command += ["-accel", "tcg,thread=multi", "-display", "none", "-serial", f"file:{folder}/console"]
    command += ["-monitor", f"unix:{folder}/monitor,server,nowait"]
    command += ["-kernel", str(boots.kernel), "-initrd", str(boots.initrd)]
    command += ["-append", "console=ttyAMA0 panic=-1 loglevel=4"]
    for number, (path, extra) in enumerate(
        ((boots.disk, ",snapshot=on"), (folder / "keys.tar", ",readonly=on"))
    ):
        command += ["-drive", f"if=none,file={path},format=raw,id=d{number}{extra}"]
        command += ["-device", f"virtio-blk-pci,drive=d{number},addr={number + 4}"]
    command += ["-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:{net.address}:22-:22"]
    command += ["-device", "virtio-net-pci,netdev=n0,romfile=,addr=8", "-device", "virtio-rng-pci"]
    with (folder / "log").open("wb") as log:
        qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *net.inside, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        device = Machine(net=net, folder=folder, user_key=user_key, _qemu=qemu)
        device.wait_for_sshd()
        yield device
    finally:
        qemu.kill()
        qemu.wait()
        net.remove()
