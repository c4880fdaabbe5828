"""Find a task's file and digest everything local that it is made of, without importing it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core import plugins
from harness.core.errors import UsageError
from harness.core.types import digest

TASKS = "compressors.tasks"
_PACKAGE = Path(__file__).resolve().parent
#: Local files up to this size are digested by content, larger ones by size and modification time.
_CONTENT_LIMIT_BYTES = 32 * 2**20


def locate(model: str) -> Path:
    """The file of a task given by name (``digits_cnn``) or by path (``my/task.py``)."""
    if model.endswith(".py") or "/" in model:
        path = Path(model).expanduser()
        if not path.is_file():
            raise UsageError(
                f"The task file {model} does not exist.",
                hint="Give the path of a Python file that defines a task.",
            )
        return path.resolve()
    known = plugins.names(TASKS)
    if model not in known:
        raise plugins.unknown("model", model, known)
    return _PACKAGE / "tasks" / f"{model}.py"


def task_name(model: str) -> str:
    """The short name of a task given by name or by path."""
    return Path(model).stem if model.endswith(".py") else Path(model).name


def task_digest(path: Path) -> str:
    """
    Digest of a task: its source, the local modules it imports, and the local files its strings name.

    So weights that a task loads with ``torch.load(folder / "weights.pt")`` are part of its identity:
    training them again is never answered from the cache.
    """
    parts: dict[str, str] = {}
    waiting = [path]
    while waiting:
        source = waiting.pop()
        name = _label(source, path.parent)
        if name in parts:
            continue
        text = _read(source)
        parts[name] = hashlib.sha256(text.encode()).hexdigest()
        tree = _parse(source, text)
        waiting.extend(_imported(tree, source, path.parent))
        for file in _named_files(tree, source.parent, path.parent, Path.cwd()):
            parts[f"file {_label(file, path.parent)}"] = _file_digest(file)
    return digest(parts)


def _label(file: Path, folder: Path) -> str:
    """What no other file is called: its path, seen from *folder* if it is below, so that a task can move."""
    whole = Path(os.path.abspath(file))  # noqa: PTH100 - a link keeps the name that it is opened by
    below = Path(os.path.abspath(folder))  # noqa: PTH100
    return whole.relative_to(below).as_posix() if whole.is_relative_to(below) else str(whole)


def option_digests(options: Mapping[str, Any], model: str) -> list[str]:
    """Digests of the Python files and tasks that a step's *options* name: another teacher, another step."""
    found = []
    for value in options.values():
        if not isinstance(value, str):
            continue
        file = value.partition(".py:")[0] + ".py" if ".py:" in value else value
        places = [Path(file).expanduser(), locate(model).parent / file]
        places += [_PACKAGE / "tasks" / f"{file}.py"] if file in plugins.names(TASKS) else []
        path = next((p for p in places if p.suffix == ".py" and p.is_file()), None)
        found += [task_digest(path)] if path else []
    return found


def siblings(path: Path) -> list[Path]:
    """The local modules that the file at *path* imports from its own folder."""
    return list(_imported(_parse(path, _read(path)), path, path.parent))


@functools.cache
def own_digest(*names: str) -> str:
    """Digest of this package's own code: its top-level modules and the plugins *names* (``passes/prune``)."""
    shared = [*_PACKAGE.glob("*.py"), *_PACKAGE.glob("kernels/*.py")]
    files = sorted(shared) + [_PACKAGE / f"{name}.py" for name in names]
    return digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a distribution, None if it is not installed; imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of *packages*; those that are not installed are left out."""
    found = {package: version(package) for package in packages}
    return {package: text for package, text in found.items() if text is not None}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The task file {path} cannot be read: {error}.") from error


def _parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise UsageError(
            f"{where}: the task file is not valid Python: {getattr(error, 'msg', error)}."
        ) from error


def _imported(tree: ast.Module, importer: Path, folder: Path) -> Iterator[Path]:
    """The local modules that *importer* imports: from the task's *folder*, or relative to itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(alias.name, folder)
        elif isinstance(node, ast.ImportFrom):
            base = importer.parents[min(node.level, len(importer.parents)) - 1] if node.level else folder
            if node.level and (base / "__init__.py").is_file():
                yield base / "__init__.py"
            start = [node.module] if node.module else []
            for name in (".".join(start), *(".".join([*start, alias.name]) for alias in node.names)):
                yield from _module_files(name, base)


def _module_files(name: str, folder: Path) -> Iterator[Path]:
    parts = [part for part in name.split(".") if part != "*"]
    if not all(parts):
        return
    for depth in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:depth])
        for candidate in (place.with_suffix(".py"), place / "__init__.py"):
            if candidate.is_file():
                yield candidate


def _named_files(tree: ast.Module, *bases: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        text = node.value
        if not 0 < len(text) < 256 or "\n" in text or "\0" in text:
            continue
        if text.startswith("~/"):
            text = os.path.expanduser(text)  # noqa: PTH111 - a home that is not known stays as it is
        yield from (base / text for base in bases if (base / text).is_file())


def _file_digest(path: Path) -> str:
    status = path.stat()
    if status.st_size > _CONTENT_LIMIT_BYTES:
        return f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
