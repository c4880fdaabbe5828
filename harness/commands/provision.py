"""Put the runtimes on a device, or take them away: no root, no internet there."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from harness import config, parts, preflight, progress, provisioning
from harness.commands import _options
from harness.core import codec, plugins, units
from harness.core.errors import EdgebenchError
from harness.core.places import cache_dir
from harness.core.types import Device
from harness.session import Conduct, open_session


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help=f"Only this one ({', '.join(parts.RUNTIMES)}); may be given again.  [default: all three]",
)
@click.option("--remove", is_flag=True, help="Remove everything that is ours from the device.")
@_options.fleet
@_options.cache
@_options.as_json
def command(
    *,
    names: tuple[str, ...],
    runtimes: tuple[str, ...],
    remove: bool,
    fleet: Path | None,
    cache: Path | None,
    as_json: bool,
) -> int:
    """
    Make devices ready to measure on: names, globs or tags.

    What fits each device is found and fetched here, sent once, unpacked into one folder of ours there, and
    tried there. A runtime that a device cannot have says why.
    """
    for name in runtimes:
        if name not in parts.RUNTIMES:
            raise plugins.unknown("runtime", name, parts.RUNTIMES)
    devices = config.select_devices(config.load_devices(fleet), names)
    chosen = tuple(dict.fromkeys(runtimes)) or parts.RUNTIMES
    folder = cache.absolute() if cache else cache_dir()
    away = preflight.failures(devices)  # asks for passphrases, too: a thread of the pool cannot
    with progress.reporter() as show, ThreadPoolExecutor(max_workers=min(16, len(devices))) as pool:

        def work(device: Device) -> dict[str, Any]:
            if device.name in away:
                return {"device": device.name, "reason": str(away[device.name])}
            return _one(device, chosen, folder, show, remove=remove)

        answers = list(pool.map(work, devices))
    if as_json:
        click.echo(json.dumps(answers, indent=1))
    elif remove:
        _print_removed(answers)
    else:
        _print(answers)
    return 0 if all(answer.get("runtimes") or "removed_bytes" in answer for answer in answers) else 2


def _one(
    device: Device, runtimes: tuple[str, ...], cache: Path, show: progress.Reporter, *, remove: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"device": device.name}
    try:
        with open_session(device, Conduct(run="provision", say=show.say, settings=False)) as session:
            if remove:
                size, stay = provisioning.remove(session.transport)
                session.forget()
                return row | {"removed_bytes": size, "stay": list(stay)}
            done = provisioning.provision(
                device,
                session.transport,
                session.facts,
                cache,
                lambda text: show.say(f"{device.name}: {text}"),
                runtimes=runtimes,
            )
            return {**row, **codec.to_json(done)}
    except EdgebenchError as error:
        return row | {"reason": str(error)}


def _print(answers: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("device", "runtime", "version", ""):
        table.add_column(title)
    for row in answers:
        name = row["device"]
        if "reason" in row:
            table.add_row(name, "-", "-", row["reason"])
            continue
        notes = [f"{package}: {note}" for package, note in row["notes"].items()]
        for runtime, version in row["runtimes"].items():
            table.add_row(name, runtime, version, "")
        for runtime, reason in row["missing"].items():
            table.add_row(name, runtime, "-", reason)
        for note in notes:
            table.add_row(name, "", "", note)
    _options.stdout().print(table)
    for row in answers:
        if "reason" not in row:
            sent = units.size(row["pushed_bytes"])
            click.echo(f"{row['device']}: {sent} sent in {row['pushed_files']} files, {row['wall_s']:.1f} s")


def _print_removed(answers: list[dict[str, Any]]) -> None:
    for row in answers:
        text = row.get("reason") or f"{units.size(row['removed_bytes'])} removed; nothing of ours is left"
        foreign = f"; not ours, and still there: {', '.join(row['stay'])}" if row.get("stay") else ""
        click.echo(f"{row['device']}: {text}{foreign}")
