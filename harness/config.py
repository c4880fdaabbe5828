"""devices.yaml and recipe files to Device and Recipe."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness import yaml_lines
from harness.core import plugins
from harness.core.errors import UsageError
from harness.core.types import Device, Recipe, Step

TRANSPORTS = "harness.transports"
PASSES = "compressors.passes"
RECIPES = plugins.ROOT / "compressors" / "recipes"


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    devices: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _Device(BaseModel):
    model_config = ConfigDict(extra="forbid")
    transport: str
    tags: tuple[str, ...] = ()


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    steps: list[dict[str, dict[str, Any] | None] | str] = Field(default_factory=list)


def load_devices(path: Path | None) -> dict[str, Device]:
    """
    The fleet of *path* (None: ``devices.yaml`` here, if there is one), by name.

    This machine is always there as ``local``, whether the file names it or not.
    """
    fleet = {"local": Device(name="local", transport="local")}
    if path is None:
        path = Path("devices.yaml")
        if not path.exists():
            return fleet
    document = yaml_lines.read(path)
    entries = yaml_lines.validate(_Fleet, document, (), document.data).devices
    return fleet | {name: _device(document, name, entry) for name, entry in entries.items()}


def _device(document: yaml_lines.Document, name: str, entry: Mapping[str, Any]) -> Device:
    key = ("devices", name)
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
    own = valid.model_dump(include=set(transport.Options.model_fields))
    return Device(name=name, transport=valid.transport, tags=valid.tags, options=own)


def select_devices(fleet: Mapping[str, Device], patterns: Sequence[str]) -> list[Device]:
    """The devices that *patterns* name (names, globs or tags), in the order asked for, each once."""
    chosen: dict[str, Device] = {}
    for pattern in patterns:
        found = [d for d in fleet.values() if fnmatch.fnmatch(d.name, pattern) or pattern in d.tags]
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
