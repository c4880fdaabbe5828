"""
Find plugins: a plugin is a module, its name is its file name, its help is its docstring.

Names and summaries are read from the file system and from source text, so listing plugins imports
none of them.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from harness.core.errors import MissingPackage, UsageError

ROOT = Path(__file__).resolve().parents[2]

#: Which extra of pyproject.toml brings a package that a plugin may lack.
EXTRAS = {
    "torch": "torch",
    "torchao": "torch",
    "torch_pruning": "torch",
    "sklearn": "torch",
    "tensorly": "torch",
    "optuna": "torch",
    "executorch": "executorch",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "litert_torch": "tflite",
    "ai_edge_litert": "tflite",
    "plotly": "report",
}


def names(package: str) -> list[str]:
    """The plugin names of *package* (``"compressors.passes"``), sorted."""
    folder = ROOT.joinpath(*package.split("."))
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def summary(package: str, name: str) -> str:
    """The first line of a plugin's docstring, read without importing it."""
    path = ROOT.joinpath(*package.split("."), f"{name}.py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0]


def load(package: str, name: str) -> ModuleType:
    """
    Import one plugin.

    Raises UsageError for an unknown name (with the likely intended one), MissingPackage when a
    library that the plugin needs is not installed.
    """
    if name not in names(package):
        kind = package.rsplit(".", 1)[-1].removesuffix("es" if package.endswith("passes") else "s")
        raise unknown(kind, name, names(package))
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        top = (error.name or "").split(".")[0]
        raise missing_package(top, needed_by=f"{package}.{name}") from error


def missing_package(top: str, *, needed_by: str) -> MissingPackage:
    """The error for an absent library, with the command that installs it."""
    extra = EXTRAS.get(top)
    target = f"'edgebench[{extra}]'" if extra else top
    return MissingPackage(
        f"{needed_by} needs the Python package {top!r}, which is not installed.",
        hint=f"Install it: {sys.executable} -m pip install {target}",
    )


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not among *known*: says what was likely meant and what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(known) if known else "none"
    return UsageError(f"There is no {kind} {name!r}.", hint=f"{meant}Known: {listed}.")
