"""Debian's own numpy for devices that PyPI has none for (32-bit Arm), fetched here without root."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness.core.types import digest
from harness.wheels import NoWheel, pack

#: Debian's name of each machine, and the folder that its libraries are in.
ARCHITECTURES = {"armv7l": ("armhf", "arm-linux-gnueabihf")}
#: numpy and what it is linked with, but for libc, libgcc and libstdc++, which every Debian has.
PACKAGES = ("python3-numpy", "libblas3", "liblapack3", "libgfortran5")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
APT_TIMEOUT_S = 300.0
UNUSED = re.compile(r"/(?:tests|f2py|distutils|__pycache__|include)/|\.pyi$|\.pxd$|\.h$|\.a$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numpy:
    """An archive with ``numpy/`` at its top and the libraries that it needs in ``lib/``."""

    path: Path
    version: str
    downloaded_bytes: int = 0  # 0: it was in the cache


def numpy(machine: str, codename: str, cache: Path) -> Numpy | NoWheel:
    """
    The numpy of the Debian release *codename* (``bookworm``) for *machine*, as an archive to unpack.

    Needs apt-get and dpkg-deb here, and Debian's keyring; says so if they are not there.
    """
    if machine not in ARCHITECTURES:
        return NoWheel(reason=f"Debian's packages are not known for {machine}")
    if not re.fullmatch(r"[a-z]+", codename):
        return NoWheel(reason="the device does not say which Debian release it has")
    tools = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    folder = cache / "wheels" / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"numpy-{codename}-{ARCHITECTURES[machine][0]}-{digest([PACKAGES, UNUSED.pattern])[:8]}"
    with filelock.FileLock(folder / f"{stem}.lock"):
        for known in folder.glob(f"{stem}_*.zip"):
            return Numpy(path=known, version=known.stem.rpartition("_")[2])
        if tools:
            return NoWheel(reason=f"this machine has no {' and no '.join(tools)}", final=False)
        if not KEYRING.exists():
            install = "sudo apt install debian-archive-keyring"
            return NoWheel(reason=f"this machine has no {KEYRING}: {install}", final=False)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".apt-") as name:
            return _fetch(machine, codename, Path(name), folder / stem)


def _fetch(machine: str, codename: str, work: Path, stem: Path) -> Numpy | NoWheel:
    architecture, triplet = ARCHITECTURES[machine]
    debs = _download(architecture, codename, work)
    if isinstance(debs, NoWheel):
        return debs
    version = next(deb.name.split("_")[1] for deb in debs if deb.name.startswith("python3-numpy_"))
    version = version.replace("%3a", ":").rpartition(":")[2].partition("-")[0]
    path = stem.with_name(f"{stem.name}_{version}.zip")
    files: dict[str, bytes] = {}
    for deb in debs:
        files |= _content(deb, triplet)
    pack(path, sorted(files.items()))
    return Numpy(path=path, version=version, downloaded_bytes=sum(deb.stat().st_size for deb in debs))


def _download(architecture: str, codename: str, work: Path) -> list[Path] | NoWheel:
    """Fetch the packages with an apt of our own: of this system it takes the keyring and the mirror."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (work / name).mkdir(parents=True)
    (work / "state" / "status").touch()
    sources = work / "etc" / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {codename} main\n", encoding="utf-8")
    apt = ["apt-get", "-q", "-o", f"Dir::State={work / 'state'}", "-o", f"Dir::Cache={work / 'cache'}"]
    apt += ["-o", f"Dir::State::status={work / 'state' / 'status'}", "-o", f"Dir::Etc::sourcelist={sources}"]
    apt += ["-o", "Dir::Etc::sourceparts=-", "-o", f"APT::Architecture={architecture}"]
    apt += ["-o", f"APT::Architectures={architecture}", "-o", "APT::Sandbox::User="]
    apt += ["-o", "Acquire::Languages=none", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]
    for call in (["update", "--error-on=any"], ["download", *PACKAGES]):
        try:
            done = subprocess.run(
                [*apt, *call], check=False, cwd=work, capture_output=True, text=True, timeout=APT_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return NoWheel(reason=f"apt-get {call[0]} did not end within {APT_TIMEOUT_S:g} s", final=False)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no message"]
            return NoWheel(reason=f"apt-get {call[0]} failed: {errors[0][:300]}", final=False)
    return sorted(work.glob("*.deb"))


def _mirror() -> str:
    """Where this system gets Debian from, if it is a Debian; else Debian's own address."""
    texts = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in texts:
        if path.suffix in {".list", ".sources"} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found = re.search(
                r"^(?:URIs:|deb\s(?:\s*\[.*?\])?)\s*(https?://\S+/debian)/?(?:\s|$)", text, re.M
            )
            if found:
                return found[1]
    return MIRROR


def _content(deb: Path, triplet: str) -> Mapping[str, bytes]:
    """What of a package goes into the archive: Python modules at its top, libraries in ``lib/``."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return dict(_chosen(archive, triplet))


def _chosen(archive: tarfile.TarFile, triplet: str) -> Iterator[tuple[str, bytes]]:
    modules, libraries = "./usr/lib/python3/dist-packages/", f"./usr/lib/{triplet}/"
    for member in archive.getmembers():
        if member.name.startswith(modules) and member.isfile() and not UNUSED.search(member.name):
            name = member.name.removeprefix(modules)
        elif member.name.startswith(libraries) and re.search(r"\.so\.\d+$", member.name):
            name = f"lib/{Path(member.name).name}"  # the name that the linker looks for; links are followed
        else:
            continue
        file = archive.extractfile(member)
        if file is not None:
            yield name, file.read()
