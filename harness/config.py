"""devices.yaml and recipe files to Device and Recipe."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness import yaml_lines
from harness.core import cpu_list, plugins
from harness.core.errors import UsageError
from harness.core.types import Device, Recipe, Step

TRANSPORTS = "harness.transports"
PASSES = "compressors.passes"
RECIPES = plugins.ROOT / "compressors" / "recipes"
#: Common keys of a device that are set there while it is used, and put back.
SETTINGS = ("governor", "power_mode", "clocks", "affinity")
LONGEST_NAME = 64  # of a device: it is part of file names


def _cpus(text: str) -> str:
    return cpu_list.text(cpu_list.parse(text))


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    devices: dict[str, dict[str, Any]] = Field(default_factory=dict)


_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]


class _Device(BaseModel):
    model_config = ConfigDict(extra="forbid")
    transport: str
    tags: tuple[str, ...] = ()
    emulated: bool = False
    governor: _Word | None = None
    power_mode: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")] | None = (
        None
    )
    clocks: Literal["max"] | None = None
    affinity: Annotated[str, AfterValidator(_cpus)] | None = None
    sudo: bool = False


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    steps: list[dict[str, dict[str, Any] | None] | str] = Field(default_factory=list)


def load_devices(path: Path | None, *, this_machine: bool = True) -> dict[str, Device]:
    """
    The fleet of *path* (None: ``devices.yaml`` here, if there is one), by name.

    This machine is there as ``local``, whether the file names it or not, unless *this_machine* is False:
    then there is what the file names.
    """
    fleet = {"local": Device(name="local", transport="local")} if this_machine else {}
    if path is None:
        path = Path("devices.yaml")
        if not path.exists():
            return fleet
    document = yaml_lines.read(path)
    entries = yaml_lines.validate(_Fleet, document, (), document.data).devices
    named = {name: _device(document, name, entry) for name, entry in entries.items()}
    return fleet | {name: _placed(document, device, named) for name, device in named.items()}


def _device(document: yaml_lines.Document, name: str, entry: Mapping[str, Any]) -> Device:
    key = ("devices", name)
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UsageError(
            f"{document.at(key)}: {name[:LONGEST_NAME]!r} cannot be a device's name.",
            hint=f"Use 1 to {LONGEST_NAME} characters on one line, best letters, digits and . _ - only.",
        )
    if "transport" not in entry:
        if close := difflib.get_close_matches("transport", entry, n=1):
            where = document.at((*key, close[0]))
            raise UsageError(f"{where}: unknown key {close[0]!r}.", hint="Did you mean 'transport'?")
        raise UsageError(
            f"{document.at(key)}: devices.{name}.transport is missing.",
            hint=f"Known transports: {', '.join(plugins.names(TRANSPORTS))}.",
        )
    try:
        transport = plugins.load(TRANSPORTS, str(entry["transport"]))
    except UsageError as error:
        raise UsageError(f"{document.at((*key, 'transport'))}: {error.message}", hint=error.hint) from error
    schema: type[Any] = type("Entry", (_Device, transport.Options), {})  # common keys and the transport's own
    valid: Any = yaml_lines.validate(schema, document, key, entry)
    asked = {setting: value for setting in SETTINGS if (value := getattr(valid, setting)) is not None}
    return Device(
        name=name,
        transport=valid.transport,
        tags=valid.tags,
        options=valid.model_dump(include=set(transport.Options.model_fields)),
        settings=asked | ({"sudo": True} if valid.sudo else {}),
        emulated=valid.emulated,
    )


def _placed(document: yaml_lines.Document, device: Device, named: Mapping[str, Device]) -> Device:
    """*device* with the hosts that it is behind (``via: NAME``), if its transport can go through others."""
    with_hops = getattr(plugins.load(TRANSPORTS, device.transport), "with_hops", None)
    if with_hops is None:
        return device
    try:
        placed: Device = with_hops(device, named)
    except UsageError as error:
        where = document.at(("devices", device.name, "via"))
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error
    return placed


def device_called(fleet: Mapping[str, Device], name: str) -> Device:
    """The device of exactly this name."""
    if name not in fleet:
        raise plugins.unknown("device", name, fleet)
    return fleet[name]


def select_devices(fleet: Mapping[str, Device], patterns: Sequence[str]) -> list[Device]:
    """The devices that *patterns* name (names, globs or tags), in the order asked for, each once."""
    chosen: dict[str, Device] = {}
    for pattern in patterns:
        found = [fleet[pattern]] if pattern in fleet else []  # a name may look like a glob
        found = found or [
            d for d in fleet.values() if fnmatch.fnmatchcase(d.name, pattern) or pattern in d.tags
        ]
        if not found:
            raise plugins.unknown("device", pattern, fleet)
        chosen |= {device.name: device for device in found}
    return list(chosen.values())


def recipe_names() -> list[str]:
    """The recipes that ship with edgebench."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a recipe file by path; every step's options are checked by its pass."""
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        if name not in recipe_names():
            raise plugins.unknown("recipe", name, recipe_names())
        path = RECIPES / f"{name}.yaml"
    document = yaml_lines.read(path)
    recipe = yaml_lines.validate(_Recipe, document, (), document.data)
    steps = tuple(_step(document, index, step) for index, step in enumerate(recipe.steps))
    return Recipe(name=recipe.name, steps=steps, source=str(path))


def _step(document: yaml_lines.Document, index: int, step: Mapping[str, Any] | str) -> Step:
    key = ("steps", index)
    if isinstance(step, str):
        step = {step: None}
    if len(step) != 1:
        raise UsageError(
            f"{document.at(key)}: step {index + 1} names {len(step)} passes ({', '.join(step)}).",
            hint="Give each pass its own list item: - name: {options}.",
        )
    ((name, options),) = step.items()
    try:
        module = plugins.load(PASSES, name)
    except UsageError as error:
        raise UsageError(f"{document.at((*key, name))}: {error.message}", hint=error.hint) from error
    valid = yaml_lines.validate(module.Options, document, (*key, name), options)
    return Step(name=name, options=valid.model_dump(mode="json", by_alias=True))
