"""Proving to an ssh server who we are: ssh-agent, key files, certificates, then a password."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core import prompting
from harness.core.errors import DeviceError, TransientDeviceError
from harness.transports._ssh_config import DEFAULT_KEYS, Target

if TYPE_CHECKING:
    import paramiko

TRIES = 3  # of a passphrase, as ssh has it
#: The environment is everybody's.
_ENVIRONMENT = threading.Lock()


class Secrets:
    """Passwords and passphrases; what was typed stays in memory, so that the next connection asks nobody."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], str | None] = {}
        self._asking = threading.Lock()  # two devices that are connected at once must not ask at once

    def passphrase(self, target: Target, path: Path, opens: Callable[[str], bool]) -> str | None:
        """
        The passphrase of a key file: from EDGEBENCH_PASSPHRASE(_NAME), else from the terminal; or None.

        It is asked for once, whatever the number of devices that the key is for; what does not open the
        key, up to TRIES times. The last one is returned all the same, and stays: it is wrong.
        """
        names = (f"EDGEBENCH_PASSPHRASE_{target.variable}", "EDGEBENCH_PASSPHRASE")
        question = f"Passphrase of {path} ({target.name}): "

        def ask() -> str | None:
            told = prompting.secret(question)
            for number in range(2, TRIES + 1):
                if told is None or opens(told):
                    break
                told = prompting.secret(f"That is not it ({number} of {TRIES}). {question}")
            return told

        return self._get(names, ("passphrase", str(path)), ask)

    def password(self, target: Target) -> str | None:
        """
        The password of a user: from EDGEBENCH_PASSWORD_NAME, else from the terminal; or None.

        There is no variable for all devices: one host must not be shown the password of another. For the
        same reason what was typed is for one device: an address may be another host behind another jump.
        """
        names = (f"EDGEBENCH_PASSWORD_{target.variable}",)
        question = f"Password of {target.where} ({target.name}): "
        key = ("password", target.device, target.where)
        return self._get(names, key, lambda: prompting.secret(question))

    def _get(
        self, variables: Sequence[str], key: tuple[str, ...], ask: Callable[[], str | None]
    ) -> str | None:
        for name in variables:
            if value := os.environ.get(name):
                return value
        with self._asking:
            if key not in self._known:
                self._known[key] = ask()
            return self._known[key]


#: Of this process.
SECRETS = Secrets()


def log_in(transport: paramiko.Transport, target: Target, secrets: Secrets) -> None:
    """
    Authenticate *transport* as the target's user.

    Raises DeviceError (stable) when the server accepts nothing that we have, with what was offered;
    TransientDeviceError when the link was lost meanwhile.
    """
    import paramiko

    tried: list[str] = []
    notes: list[str] = []
    methods: list[str] = []
    agent = _agent(target)
    try:
        methods = _methods(transport, target)
        if transport.is_authenticated():
            return
        if "publickey" in methods:
            for label, key in _keys(target, agent, secrets, notes):
                tried.append(label)
                try:
                    rest = transport.auth_publickey(target.user, key)
                except paramiko.AuthenticationException:
                    _must_be_open(transport, target, tried)
                    continue
                if not rest:
                    return
                methods = rest  # the key was right, and something more is wanted
                break
        if {"password", "keyboard-interactive"} & set(methods):
            password = secrets.password(target)
            if password is not None:
                tried.append("a password")
                transport.auth_password(target.user, password)
                if transport.is_authenticated():
                    return
    except paramiko.AuthenticationException:
        _must_be_open(transport, target, tried)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise TransientDeviceError(f"{target.name}: the link was lost while logging in: {error}.") from error
    finally:
        if agent is not None:
            agent.close()
    raise _refused(target, methods, tried, notes)


def _methods(transport: paramiko.Transport, target: Target) -> list[str]:
    """What the server accepts for this user; it may let us in without anything."""
    import paramiko

    try:
        transport.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    return []


def _must_be_open(transport: paramiko.Transport, target: Target, tried: list[str]) -> None:
    """A server that hangs up after several keys has a limit (MaxAuthTries); after few the link was lost."""
    if transport.is_active():
        return
    if len(tried) >= 3:
        raise DeviceError(
            f"{target.name}: {target.where} hung up after {len(tried)} keys were offered.",
            hint=f"Say which one is right: identity: FILE at {target.name}.",
        )
    raise TransientDeviceError(f"{target.name}: {target.where} hung up while logging in.")


def _agent(target: Target) -> paramiko.Agent | None:
    """The user's ssh-agent, if one answers."""
    import paramiko

    if target.agent is None or not Path(target.agent).is_socket():
        return None
    try:
        return _AgentAt(target.agent).open()
    except (paramiko.SSHException, OSError):
        return None  # it went away: the same as none


class _AgentAt:
    """paramiko finds its agent by the environment only; IdentityAgent may name another one."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> paramiko.Agent:
        """Connect to the agent at *path*."""
        import paramiko

        with _ENVIRONMENT:
            before = os.environ.get("SSH_AUTH_SOCK")
            os.environ["SSH_AUTH_SOCK"] = self.path
            try:
                return paramiko.Agent()
            finally:
                if before is None:
                    del os.environ["SSH_AUTH_SOCK"]
                else:
                    os.environ["SSH_AUTH_SOCK"] = before


def _keys(
    target: Target, agent: paramiko.Agent | None, secrets: Secrets, notes: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Every key to offer, best guess first; *notes* gets a sentence for each file that cannot be used."""
    held = list(agent.get_keys()) if agent is not None else []
    named = [path for path in target.identities if path.exists() or _public(path).exists()]
    notes += [f"{path} does not exist" for path in target.identities if path not in named]
    defaults = [] if target.only_identities and named else _defaults(named)
    by_blob = {key.asbytes(): key for key in held}
    used: set[bytes] = set()
    for path in named:  # the agent spares us the passphrase of a key that was named
        blob = _public_blob(path)
        if blob in by_blob and blob not in used:
            used.add(blob)
            yield f"{path} (ssh-agent)", by_blob[blob]
        elif path.exists():
            yield from _load(path, target, secrets, notes)
    if not target.only_identities:
        for key in held:
            if key.asbytes() not in used:
                yield f"{key.comment or key.get_name()} (ssh-agent)", key
    for path in defaults:
        if _public_blob(path) not in by_blob:
            yield from _load(path, target, secrets, notes)


def _load(
    path: Path, target: Target, secrets: Secrets, notes: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    import paramiko

    try:
        key = _read(path, None)
        if key is None:
            passphrase = secrets.passphrase(target, path, lambda told: _opened(path, told) is not None)
            if passphrase is None:
                notes.append(f"{path} needs its passphrase")
                return
            key = _opened(path, passphrase)
    except (paramiko.SSHException, ValueError, TypeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no key"
        notes.append(f"{path} cannot be used: {reason}")
        return
    if key is None:
        notes.append(f"{path} cannot be used: its passphrase is wrong")
        return
    certificates = [key.public_blob]
    for certificate in target.certificates:
        with contextlib.suppress(OSError, ValueError):  # one of another key, or not there
            key.load_certificate(str(certificate))
            certificates.append(key.public_blob)
    for blob in filter(None, certificates):
        key.public_blob = blob
        yield f"{path} (certificate)", key
    key.public_blob = None
    yield str(path), key


def _read(path: Path, passphrase: str | None) -> paramiko.PKey | None:
    """The private key with its certificate (FILE-cert.pub), if there is one; None when it is locked."""
    import paramiko

    try:
        secret = None if passphrase is None else passphrase.encode()
        return paramiko.PKey.from_path(path, secret)  # type: ignore[arg-type]  # it wants bytes
    except (TypeError, paramiko.PasswordRequiredException):
        if passphrase is None:
            return None
        raise


def _opened(path: Path, passphrase: str) -> paramiko.PKey | None:
    """A locked private key; None when that is not its passphrase."""
    import paramiko

    try:
        return _read(path, passphrase)
    except (paramiko.SSHException, ValueError, TypeError):
        return None


def _defaults(named: list[Path]) -> list[Path]:
    folder = Path.home() / ".ssh"
    return [folder / name for name in DEFAULT_KEYS if (folder / name).exists() and folder / name not in named]


def _public(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _public_blob(path: Path) -> bytes | None:
    """The public half as it lies beside the private key; None if it does not."""
    from paramiko.pkey import PublicBlob

    try:
        return bytes(PublicBlob.from_file(str(_public(path))).key_blob)
    except (OSError, ValueError):
        return None


def _refused(target: Target, methods: list[str], tried: list[str], notes: list[str]) -> DeviceError:
    offered = f"offered: {', '.join(tried)}" if tried else "there was nothing to offer"
    more = f"; {'; '.join(notes)}" if notes else ""
    name = target.variable
    if any(note.endswith("its passphrase is wrong") for note in notes):
        hint = (
            "Try again with the right passphrase, or add the key to ssh-agent (ssh-add), "
            f"or set EDGEBENCH_PASSPHRASE_{name}."
        )
    elif any(note.endswith("needs its passphrase") for note in notes):
        hint = f"Add the key to ssh-agent (ssh-add), or set EDGEBENCH_PASSPHRASE_{name}, or use a terminal."
    elif "publickey" in methods:
        hint = f"Bring your key there: {_copy_id(target)}; or name the right one with identity: FILE."
    else:
        hint = f"It wants {' or '.join(methods)}: set EDGEBENCH_PASSWORD_{name}, or use a terminal."
    return DeviceError(f"{target.name}: {target.where} does not let us in ({offered}{more}).", hint=hint)


def _copy_id(target: Target) -> str:
    """The command as its own syntax wants it: the port apart, no brackets around an IPv6 address."""
    port = "" if target.port == 22 else f"-p {target.port} "
    return f"ssh-copy-id {port}{shlex.quote(f'{target.user}@{target.host}')}"
