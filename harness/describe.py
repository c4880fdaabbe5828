"""Say what options a plugin takes: name, type, default, range and what it does, nested options too."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SIGNS = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", "≥"),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "≤"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option; an option of options has a dotted name (``finetune.lr``)."""

    name: str
    type: str
    default: Any  # as JSON takes it
    range: str  # "" if every value of the type will do
    doc: str


def options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """Every option of *model*, those of nested models right behind the one that holds them."""
    for key, field in model.model_fields.items():
        name = prefix + (field.alias or key)
        inner = _model(field.annotation)
        default = field.get_default(call_default_factory=True)
        if inner is not None and isinstance(default, BaseModel):
            yield Option(name=name, type="options", default=None, range="", doc=field.description or "")
            for option in options(inner, f"{name}."):
                own = _at(default, option.name.removeprefix(f"{name}."))
                yield Option(
                    name=option.name, type=option.type, default=own, range=option.range, doc=option.doc
                )
            continue
        yield Option(
            name=name,
            type=type_name(field.annotation),
            default="required" if field.is_required() else _plain(default),
            range=_range(field),
            doc=field.description or "",
        )


def _at(default: BaseModel, dotted: str) -> Any:
    """The value at *dotted* of a default, as JSON takes it."""
    found: Any = default.model_dump(mode="json", by_alias=True)
    for part in dotted.split("."):
        found = found[part]
    return None if isinstance(found, dict) else found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def type_name(annotation: Any) -> str:
    """What a person calls a type: ``whole number``, ``l1 | l2``, ``list of text``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) if a is not type(None) else "none" for a in args)
    if origin in (tuple, list):
        inner = [type_name(a) for a in args if a is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in args or origin is list else f"[{', '.join(inner)}]"
    if origin is not None and issubclass(origin, typing.Mapping):
        return f"{type_name(args[0])}: {type_name(args[1])}"
    if (model := _model(annotation)) is not None:
        return f"options ({', '.join(f.alias or n for n, f in model.model_fields.items())})"
    names = {int: "whole number", float: "number", str: "text", bool: "true | false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _range(field: FieldInfo) -> str:
    parts = []
    for kind, attribute, sign in _SIGNS:
        parts += [f"{sign} {getattr(m, attribute):g}" for m in field.metadata if isinstance(m, kind)]
    parts += [str(m.pattern) for m in field.metadata if getattr(m, "pattern", None)]
    return ", ".join(parts)
