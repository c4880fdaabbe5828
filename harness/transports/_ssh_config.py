"""Where an ssh device is: its entry in devices.yaml together with the user's own ~/.ssh/config."""

from __future__ import annotations

import dataclasses
import getpass
import glob
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.core.errors import UsageError
from harness.core.types import Device

#: The key of Device.options that with_hops() adds: the entries of the devices that stand in between.
HOPS = "hops"
MAX_HOPS = 8
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_KNOWN_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")

HOST = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:%-]*")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
PYTHON = re.compile(r"(~/)?[A-Za-z0-9_./+][A-Za-z0-9_./+=@,-]*")  # needs no quotes in any shell
SECRET_KEYS = ("password", "passphrase", "passwd", "secret")


class Options(BaseModel):
    """What a device entry with ``transport: ssh`` may say."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(description="name, address or Host alias of ~/.ssh/config")
    port: int | None = Field(None, ge=1, le=65535, description="default: as ~/.ssh/config says, else 22")
    user: str = Field("", description="default: as ~/.ssh/config says, else your own name")
    jump: str = Field("", description="jump hosts, outermost first: [user@]host[:port],...; 'none': no jump")
    via: str = Field("", description="name of another ssh device that this one is behind")
    identity: str = Field("", description="private key file; then no other key is offered")
    python: str = Field("python3", description="interpreter on the device (3.8 or newer)")
    workdir: str = Field(".edgebench", description="folder on the device that is ours, below the home folder")
    patience_s: float = Field(120.0, ge=0, le=86400, description="how long a lost link is waited for")
    connect_timeout_s: float = Field(10.0, gt=0, le=600, description="limit of each step of connecting")

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, data: Any) -> Any:
        for key in SECRET_KEYS:
            if isinstance(data, Mapping) and key in data:
                raise ValueError(
                    f"secrets do not belong into this file: remove {key!r}, and use a key or ssh-agent; "
                    "or set EDGEBENCH_PASSWORD_<DEVICE> or EDGEBENCH_PASSPHRASE in the environment"
                )
        return data

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        return _plain(HOST, value, "a host is letters, digits and . _ : - (not at its start)")

    @field_validator("user")
    @classmethod
    def _user(cls, value: str) -> str:
        return value and _plain(USER, value, "a user is letters, digits and . _ @ + - (not at its start)")

    @field_validator("python")
    @classmethod
    def _python(cls, value: str) -> str:
        return _plain(PYTHON, value, "an interpreter is a name or a path of plain characters, without spaces")

    @field_validator("workdir", "identity", "via")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("this must be one line of printable characters")
        return value

    @field_validator("workdir")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        if ".." in value.split("/") or posixpath.normpath(value) in {".", "/", "//", "~"}:
            raise ValueError("this must be a folder of its own, below home or absolute, without '..'")
        if ":" in value or ";" in value:  # both separate the folders of LD_LIBRARY_PATH
            raise ValueError("a workdir has no ':' and no ';' in it")
        return value

    @field_validator("jump")
    @classmethod
    def _jump(cls, value: str) -> str:
        _hops(value)
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Options:
        if self.via and self.jump:
            raise ValueError("give either via (a device of this file) or jump (an ssh host), not both")
        return self


def _plain(pattern: re.Pattern[str], value: str, rule: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError(rule)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One ssh server on the way to a device, with everything that ~/.ssh/config says about it."""

    device: str  # the entry of devices.yaml that leads here
    name: str  # who it is in sentences: the device's name, or "jump host X of" it
    variable: str  # end of the names of the environment variables that may hold its secrets
    host: str  # where to connect to
    port: int
    user: str
    known_as: str  # how known_hosts calls it: HostKeyAlias, host or [host]:port
    known_hosts: tuple[Path, ...]  # read in this order; the first one is the user's and gets new keys
    hash_known_hosts: bool
    identities: tuple[Path, ...]  # private keys that were named, in order
    only_identities: bool  # offer no other key
    certificates: tuple[Path, ...]
    agent: str | None  # socket of ssh-agent; None: there is none
    proxy_command: str | None  # the user's own, already expanded

    @property
    def where(self) -> str:
        """``user@host:port`` for sentences."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + ("" if self.port == 22 else f":{self.port}")


def route(device: Device) -> tuple[Target, ...]:
    """The servers to go through, outermost first, the device last; UsageError where that makes no sense."""
    config = _Config()
    targets: tuple[Target, ...] = ()
    entries = [(name, _valid(name, entry)) for name, entry in device.options.get(HOPS, ())]
    for name, options in [*entries, (device.name, own_options(device))]:
        jump = "none" if targets else options.jump  # a device behind a device has no other way
        targets += config.chain(name, options, jump)
    if len(targets) > MAX_HOPS:
        raise UsageError(f"{device.name}: there are more than {MAX_HOPS} hosts on the way to it.")
    return targets


def own_options(device: Device) -> Options:
    """The validated options of *device*; UsageError says what does not fit."""
    return _valid(device.name, {key: value for key, value in device.options.items() if key != HOPS})


def _valid(name: str, entry: Mapping[str, Any]) -> Options:
    try:
        return Options.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{name}: {where}: {first['msg'].removeprefix('Value error, ')}.") from error


def with_hops(device: Device, fleet: Mapping[str, Device]) -> Device:
    """
    *device* with the entries of the devices that its ``via`` names, so that route() can go through them.

    Raises UsageError for a ``via`` that is unknown, no ssh device, or leads in a circle.
    """
    chain: list[tuple[str, Mapping[str, Any]]] = []
    seen = {device.name}
    via = str(device.options.get("via") or "")
    while via:
        if via not in fleet:
            raise UsageError(
                f"{device.name}: via names {via!r}, which is no device.",
                hint=f"Known: {', '.join(sorted(fleet))}.",
            )
        if fleet[via].transport != "ssh":
            raise UsageError(f"{device.name}: via names {via!r}, whose transport is not ssh.")
        if via in seen:
            raise UsageError(f"{device.name}: via leads in a circle at {via!r}.")
        seen.add(via)
        chain.insert(0, (via, dict(fleet[via].options)))
        via = str(fleet[via].options.get("via") or "")
    if not chain:
        return device
    return dataclasses.replace(device, options={**device.options, HOPS: tuple(chain)})


class _Config:
    """The user's and the system's ssh_config; for each key the first value that applies wins."""

    def __init__(self) -> None:
        self.source = Path.home() / ".ssh" / "config"
        system = _lines(SYSTEM_CONFIG, SYSTEM_CONFIG.parent, 0)
        self._text = "\n".join([*_lines(self.source, self.source.parent, 0), "Host *", *system])

    def chain(
        self, device: str, options: Options, jump: str, *, depth: int = 0, name: str = ""
    ) -> tuple[Target, ...]:
        """The target that *options* describe, after its jump hosts; *name* is what a jump host is called."""
        if depth > MAX_HOPS:
            raise UsageError(f"{device}: the jump hosts of {self.source} lead in a circle.")
        entry = self._lookup(options)
        target = self._target(device, name or device, options, entry)
        jumps = jump or ("" if target.proxy_command else str(entry.get("proxyjump") or ""))
        if jumps and target.proxy_command:
            target = dataclasses.replace(target, proxy_command=None)
        way: tuple[Target, ...] = ()
        for hop in _hops(jumps):
            # Only the first one may have a way of its own: the others are reached through it.
            own = "none" if way else ""
            hop_name = f"jump host {hop.host} of {device}"
            way += self.chain(device, hop, own, depth=depth + 1, name=hop_name)
        return (*way, target)

    def _lookup(self, options: Options) -> Mapping[str, Any]:
        """What applies to a host; our own port and user come first, as ssh's -p and -l do."""
        import paramiko

        own = (
            ["Host *"]
            + [f"Port {options.port}"] * bool(options.port)
            + [f"User {options.user}"] * bool(options.user)
        )
        try:
            return paramiko.SSHConfig.from_text("\n".join([*own, self._text])).lookup(options.host)
        except (paramiko.SSHException, KeyError, ValueError) as error:
            raise UsageError(
                f"{self.source}: what it says of {options.host} cannot be used: {error}."
            ) from error

    def _target(self, device: str, name: str, options: Options, entry: Mapping[str, Any]) -> Target:
        host = str(entry.get("hostname") or options.host)
        try:
            port = int(entry.get("port") or 22)
        except ValueError as error:
            raise UsageError(
                f"{self.source}: Port {entry['port']!r} of {options.host} is no number."
            ) from error
        identities = [options.identity] if options.identity else list(entry.get("identityfile") or ())
        only = str(entry.get("identitiesonly", "no")).lower() == "yes" or bool(options.identity)
        plain = str(entry.get("hostkeyalias") or host).lower()
        alias = "hostkeyalias" in entry
        return Target(
            device=device,
            name=name,
            variable=_variable(device if name == device else options.host),
            host=host,
            port=port,
            user=str(entry.get("user") or getpass.getuser()),
            known_as=plain if alias or port == 22 else f"[{plain}]:{port}",
            known_hosts=_known_hosts(entry),
            hash_known_hosts=str(entry.get("hashknownhosts", "no")).lower() == "yes",
            identities=tuple(_path(text) for text in identities if text.lower() != "none"),
            only_identities=only,
            certificates=_paths(str(entry.get("certificatefile") or "")),
            agent=_agent(str(entry.get("identityagent") or "SSH_AUTH_SOCK")),
            proxy_command=entry.get("proxycommand"),
        )


def _hops(jumps: str) -> list[Options]:
    """``[user@]host[:port],…`` as options; ValueError for what is none."""
    if jumps.lower() in {"", "none"}:
        return []
    found = []
    for part in jumps.split(","):
        text = part.strip().removeprefix("ssh://").rstrip("/")
        user, _, host = text.rpartition("@")
        match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?", host)
        if not match:
            raise ValueError(f"{part!r} is not [user@]host[:port]")
        _plain(HOST, match[1] or match[3], f"{part!r} is not [user@]host[:port] of plain characters")
        if user:
            _plain(USER, user, f"{part!r} is not [user@]host[:port] of plain characters")
        port = match[2] or match[4]
        entry = {"host": match[1] or match[3], "user": user, "port": int(port) if port else None}
        found.append(Options.model_validate(entry))
    return found


def _lines(path: Path, folder: Path, depth: int) -> Iterator[str]:
    """The lines of an ssh_config, with what it includes; the enclosing block goes on after an Include."""
    if depth > 16 or not path.is_file():
        return
    block = "Host *" if depth == 0 else ""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    for line in text.splitlines():
        words = re.split(r"[\s=]+", line.strip(), maxsplit=1)
        if words[0].lower() in {"host", "match"}:
            block = line
        if words[0].lower() != "include" or len(words) < 2:
            yield line
            continue
        for pattern in words[1].replace('"', "").split():
            for name in sorted(glob.glob(str(folder / Path(pattern).expanduser()))):  # noqa: PTH207 - absolute
                yield from _lines(Path(name), folder, depth + 1)
        if block:
            yield block


def _known_hosts(entry: Mapping[str, Any]) -> tuple[Path, ...]:
    user = _paths(str(entry.get("userknownhostsfile") or "~/.ssh/known_hosts ~/.ssh/known_hosts2"))
    system = _paths(str(entry.get("globalknownhostsfile") or ""))
    # /dev/null is how people switch the check off. Here it stays on, with a file of our own instead.
    user = tuple(path for path in user if path != Path(os.devnull)) or (_own_known_hosts(),)
    return (*user, *(system or SYSTEM_KNOWN_HOSTS))


def _own_known_hosts() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgebench" / "known_hosts"


def _agent(text: str) -> str | None:
    if text.lower() == "none":
        return None
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.removeprefix("$").strip("{}")) or None
    return str(_path(text))


def _paths(text: str) -> tuple[Path, ...]:
    words = (match[1] or match[2] for match in re.finditer(r'"([^"]+)"|(\S+)', text))
    return tuple(_path(word) for word in words if word.lower() != "none")


def _path(text: str) -> Path:
    text = text.replace("%d", str(Path.home()))
    return Path(text).expanduser()


def _variable(name: str) -> str:
    """How an environment variable calls a device: PI5 for pi5, LAB_PI for lab-pi."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()
