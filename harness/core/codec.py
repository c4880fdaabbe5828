"""
Frozen dataclasses to JSON and back, with the history of the record schema.

Decoding follows the type hints, refuses unknown keys and wrong types, and names the path of the value
that does not fit, so a damaged or foreign file is a sentence and not a traceback.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from harness.core.errors import UsageError

# Record schema history:
#
# 1 - first version.
SCHEMA = 1

T = TypeVar("T")


def to_json(value: object) -> Any:
    """*value* (dataclasses, mappings, sequences, scalars) as what json.dumps takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def dumps(value: object, *, indent: int | None = None) -> str:
    """*value* as JSON text."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(to_json(value), indent=indent, separators=separators, allow_nan=False)


def from_json(cls: type[T], data: object, *, where: str = "") -> T:
    """Build *cls* from parsed JSON; UsageError names the place (``where.key``) that does not fit."""
    return typing.cast(T, _decode(cls, data, where or cls.__name__))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, data: Any, where: str) -> Any:
    if hint is Any:
        return data
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is Literal:
        if data not in args:
            raise _misfit(where, f"one of {', '.join(map(repr, args))}", data)
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise _misfit(where, "a list", data)
        return _decode_tuple(args[0], data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise _misfit(where, "an object", data)
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast(type, hint), data, where)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise _misfit(where, hint.__name__, data)
    return data


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    rest = [arg for arg in args if arg is not type(None)]
    for arg in rest[:-1]:
        try:
            return _decode(arg, data, where)
        except UsageError:
            continue
    return _decode(rest[-1], data, where)


def _decode_tuple(item: Any, data: list[Any], where: str) -> tuple[Any, ...]:
    if item is int and all(type(v) is int for v in data):  # raw values: many thousands
        return tuple(data)
    return tuple(_decode(item, v, f"{where}[{i}]") for i, v in enumerate(data))


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _misfit(where, "an object", data)
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}.", hint=f"Known: {', '.join(hints)}.")
    known = {k: _decode(hints[k], v, f"{where}.{k}") for k, v in data.items()}
    try:
        return cls(**known)
    except TypeError as error:
        raise UsageError(f"{where}: {error}.") from error


def _misfit(where: str, expected: str, data: object) -> UsageError:
    return UsageError(f"{where}: expected {expected}, found {str(data)[:80]!r}.")
