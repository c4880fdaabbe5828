"""List the fleet and whether each device answers; trust a device's host key."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from harness import config, leasing
from harness.commands import _options
from harness.core import plugins, prompting
from harness.core.errors import DeviceError, EdgebenchError, SupervisorError, UsageError
from harness.core.types import FORMATS, Device
from harness.session import look
from harness.transports import _ssh_known, ssh
from harness.transports._ssh_trust import Finding


@click.group(invoke_without_command=True)
@_options.fleet
@_options.as_json
@click.pass_context
def command(context: click.Context, *, fleet: Path | None, as_json: bool) -> int:
    """Ask every device who it is and which runtimes it has."""
    if context.invoked_subcommand is not None:
        context.obj = fleet
        return 0
    devices = list(config.load_devices(fleet).values())
    answers = prompting.in_parallel(_ask, devices)
    if as_json:
        click.echo(json.dumps(answers, indent=1))
    else:
        _print(answers)
    return 0 if all(answer["answers"] for answer in answers) else 2


@command.command()
@click.argument("name")
@_options.fleet
@click.option("--fingerprint", "fingerprints", multiple=True, metavar="SHA256:…", help="Trust this key only.")
@click.option("--yes", is_flag=True, help="Trust every key that is shown, unseen.")
@click.option("--replace", is_flag=True, help="Allow a changed key to replace the known one.")
@click.pass_context
def trust(
    context: click.Context,
    *,
    name: str,
    fleet: Path | None,
    fingerprints: tuple[str, ...],
    yes: bool,
    replace: bool,
) -> int:
    """Show the host keys on the way to an ssh device, and write them into known_hosts when you agree."""
    devices = config.load_devices(fleet or context.obj)
    if name not in devices:
        raise plugins.unknown("device", name, devices)
    if devices[name].transport != "ssh":
        raise UsageError(f"{name} has no host key: its transport is {devices[name].transport}.")
    for finding in ssh.findings(devices[name]):
        _decide(name, finding, fingerprints, yes=yes, replace=replace)
    return 0


def _decide(name: str, finding: Finding, fingerprints: Sequence[str], *, yes: bool, replace: bool) -> None:
    """Pin the keys of a host on the way to *name* that the user agrees to; an error when there are none."""
    target, state = finding.target, finding.state
    click.echo(f"{target.name}, {target.known_as}: {state}")
    for entry in finding.known:
        kind = "revoked" if entry.revoked else "known"
        click.echo(f"  {kind:<8}{entry.key}  ({entry.path}:{entry.line})")
    for key in finding.shown:
        click.echo(f"  {'shows':<8}{key}")
    if state == "known":
        if fingerprints and target.name == name:  # it is the device's; a host before it has its own
            _expected(finding, fingerprints)
        return
    if state == "revoked" or not finding.shown:
        raise DeviceError(f"{target.name} shows no key that could be trusted.")
    if state == "changed" and not replace:
        raise DeviceError(
            f"{target.name}: the key of {target.known_as} has changed; nothing was written.",
            hint=f"Is it right? Then: edgebench devices trust {target.device} --replace",
        )
    path = _ssh_known.pin(target, _agreed(finding, fingerprints, yes=yes), replace=state == "changed")
    click.echo(f"  written to {path}")


def _agreed(finding: Finding, fingerprints: Sequence[str], *, yes: bool) -> list[_ssh_known.HostKey]:
    """The keys that are trusted from now on: by fingerprint, by --yes, or by an answer on the terminal."""
    name = finding.target.name
    if fingerprints:
        return _expected(finding, fingerprints)
    if not yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise UsageError(
                f"{name}: nobody is at a terminal to compare the keys.",
                hint="Give the one that you expect: --fingerprint SHA256:…, or --yes to take what is shown.",
            )
        click.confirm(f"Are these the keys of {name}?", abort=True)
    return list(finding.shown)


def _expected(finding: Finding, fingerprints: Sequence[str]) -> list[_ssh_known.HostKey]:
    """The keys that are shown and have one of *fingerprints*; DeviceError when there is none."""
    wanted = [f"SHA256:{text.removeprefix('SHA256:').rstrip('=')}" for text in fingerprints]
    keys = [key for key in finding.shown if key.fingerprint in wanted]
    if not keys:
        raise DeviceError(
            f"{finding.target.name} shows no key with the fingerprint {' or '.join(wanted)}, "
            f"but {', '.join(key.fingerprint for key in finding.shown)}; nothing was written.",
            hint="Compare it on the device itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    return keys


def _ask(device: Device) -> dict[str, Any]:
    row: dict[str, Any] = {"device": device.name, "transport": device.transport, "tags": list(device.tags)}
    try:
        with look(device) as session:
            runtimes = {}
            for name in FORMATS:
                try:
                    runtime = session.runtime(name)
                    runtimes[name] = f"{runtime.name} {runtime.version} ({runtime.engine})"
                except EdgebenchError as error:
                    runtimes[name] = f"no: {error}"
            return row | {"answers": True, "facts": dict(session.facts), "runtimes": runtimes}
    except EdgebenchError as error:
        if isinstance(error, SupervisorError) and error.kind == "held":  # it answers, and is left alone
            told = leasing.in_use(device, error).message
            return row | {"answers": True, "in_use": told, "facts": {}, "runtimes": {}}
        return row | {"answers": False, "reason": str(error)}


def _print(answers: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("device", "transport", "answers", "what it is", "runtimes"):
        table.add_column(title)
    for row in answers:
        name, transport = row["device"], row["transport"]
        if "in_use" in row:
            table.add_row(name, transport, "yes", Text(row["in_use"], style="yellow"), "not asked now")
        elif row["answers"]:
            runtimes = "\n".join(f"{name}: {text}" for name, text in row["runtimes"].items())
            table.add_row(name, transport, "yes", _what(row["facts"]), runtimes)
        else:
            table.add_row(name, transport, "no", row["reason"], "")
    _options.stdout().print(table)


def _what(facts: Mapping[str, Any]) -> str:
    parts = [str(facts.get(key)) for key in ("model", "cpu_model", "os", "kernel") if facts.get(key)]
    return "\n".join(parts)
