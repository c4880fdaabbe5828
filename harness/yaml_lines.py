"""Read a YAML file and validate it, so that an error names file, line, key and the likely intended key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from harness.core.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed YAML file: its data, and the line (from 1) of every key path in it."""

    path: Path
    data: Any
    lines: Mapping[Key, int]

    def at(self, key: Key) -> str:
        """``file:line`` of *key*, or of the nearest parent that has a line."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"


def read(path: Path) -> Document:
    """Parse *path*; UsageError if it is missing, is not YAML or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}.") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: this is not YAML: {error}.") from error
    return Document(path=path, data=data, lines=dict(_lines(path, node, ())) if node else {})


def _lines(path: Path, node: yaml.Node, prefix: Key) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                raise UsageError(f"{path}:{line}: the key {key_node.value!r} is given twice.")
            seen.add(key_node.value)
            yield (*prefix, key_node.value), line
            yield from _lines(path, value, (*prefix, key_node.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*prefix, index), item.start_mark.line + 1
            yield from _lines(path, item, (*prefix, index))


def validate(model: type[Model], document: Document, key: Key, data: Any) -> Model:
    """Build *model* from *data* (the part of *document* at *key*); UsageError names what does not fit."""
    if data is None:
        data = {}
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key is missing too: the word that is there says more than the one that is not.
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
        location = tuple(first["loc"])
        where = document.at((*key, *location))
        if first["type"] == "extra_forbidden":
            raise _unknown_key(where, str(location[-1]), _fields(model, location[:-1])) from error
        name = ".".join(str(part) for part in (*key, *location))
        if first["type"] == "missing":
            raise UsageError(f"{where}: {name} is missing.") from error
        if first["type"] == "value_error":  # of several options together
            text = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{where}: {name}: {text}.") from error
        found = f", found {first['input']!r}" if not isinstance(first["input"], dict) else ""
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise UsageError(f"{where}: {name}: {message}{found}.") from error


def _unknown_key(where: str, key: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(key, known, n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    return UsageError(f"{where}: unknown key {key!r}.", hint=f"{meant}Known: {', '.join(known) or 'none'}.")


def _fields(model: type[BaseModel], location: Key) -> list[str]:
    """The field names of the model that *location* (inside *model*) leads to."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = [a for a in _flatten(field.annotation) if field and _is_model(a)] if field else []
        if not inner:
            return []
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _flatten(annotation: Any) -> list[Any]:
    args = typing.get_args(annotation)
    return [annotation] if not args else [leaf for arg in args for leaf in _flatten(arg)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
