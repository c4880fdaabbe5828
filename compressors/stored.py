"""
Keep a state in the cache and restore it exactly.

A model whose layers are the task's own, resized or not, is stored as tensors and restored into a fresh
``task.model()``. One with other layers (a pass replaced some, tied weights or changed an attribute) is
stored whole and read by torch's restricted unpickler, which may only make modules and what the task's own
files and the libraries of models define: a cache folder cannot bring code. Quantised graphs are stored as
exported programs. Every file has its sha256 beside it, and outputs for the example inputs are the proof.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compressors import cache, quiet, rebuild, score
from compressors.constraints import Constraint
from compressors.state import Quantised, State
from compressors.task import Task
from compressors.training import deterministic, tidy
from harness.core.errors import UsageError

#: Packages whose classes a stored model may be made of, besides the task's own files.
LIBRARIES = ("torch", "transformers", "compressors")
_PLAIN = (bool, int, float, str, type(None))
#: What reading a file that is damaged or does not fit can raise.
_DAMAGED = (
    ImportError,
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    UsageError,
)


class CannotStore(Exception):
    """Why a state cannot be stored: it is built again next time."""


def save(folder: Path, state: State, task: Task, seed: int) -> None:
    """Write *state* into *folder*; CannotStore if it could not be restored from that."""
    files: dict[str, bytes] = {}
    probe = score.forward(state.reference, task.example_inputs(), task)
    stored: dict[str, Any] = {
        "tensors": state.module.state_dict(),
        "probe": list(probe),
        "constraints": {
            name: {"zeros": c.zeros, "shared": c.shared, "book": c.book}
            for name, c in state.constraints.items()
        },
        "bits": dict(state.bits),
        "scheme": state.quantised.scheme if state.quantised else None,
    }
    if not _is_like_fresh(state.module, task, seed):
        del stored["tensors"]
        files["module.pt"] = _pickled(state.module, task)
    if state.quantised is not None:
        files["folded.pt2"] = _exported(state.quantised.folded, task)
        files["unfolded.pt2"] = _exported(state.quantised.unfolded, task)
    files["state.pt"] = _bytes(stored)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests = {name: cache.sha256(folder / name) for name in files}
    (folder / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, task: Task, seed: int) -> State | None:
    """The state in *folder*; None if there is none, or it is damaged, or it does not compute the same."""
    try:
        digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
        if any(cache.sha256(folder / name) != digest for name, digest in digests.items()):
            return None
        stored: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
        if "tensors" in stored:
            with deterministic(seed):
                module = rebuild.resized(task.model(), stored["tensors"])
        else:
            module = _unpickled(folder / "module.pt", task)
        state = State(
            module=tidy(module),
            quantised=_quantised(folder, stored["scheme"]),
            constraints={name: Constraint(**c) for name, c in stored["constraints"].items()},
            bits=stored["bits"],
        )
        outputs = score.forward(state.reference, task.example_inputs(), task)
    except (*_DAMAGED, pickle.UnpicklingError, zipfile.BadZipFile, CannotStore):
        return None
    return state if _same(outputs, stored["probe"]) else None


def _same(outputs: tuple[Tensor, ...], probe: list[Tensor]) -> bool:
    return len(outputs) == len(probe) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(outputs, probe, strict=True)
    )


def _is_like_fresh(module: nn.Module, task: Task, seed: int) -> bool:
    """Whether a fresh model with the tensors of *module* is *module*, attribute by attribute."""
    try:
        with deterministic(seed):
            fresh = tidy(rebuild.resized(task.model(), module.state_dict()))
    except (RuntimeError, KeyError):
        return False
    return _description(fresh) == _description(module)


def _description(module: nn.Module) -> list[Any]:
    """Layers by name and class with their plain attributes, and which parameters are one tensor."""
    first: dict[int, str] = {}
    tied = [
        (name, first.setdefault(id(parameter), name))
        for name, parameter in module.named_parameters(remove_duplicate=False)
    ]
    return [tied] + [
        (name, type(layer), {k: v for k, v in vars(layer).items() if _is_plain(v)})
        for name, layer in module.named_modules(remove_duplicate=False)
    ]


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _bytes(value: object) -> bytes:
    buffer = io.BytesIO()  # torch's own writer does not tell why a file cannot be written
    torch.save(value, buffer)
    return buffer.getvalue()


def _pickled(module: nn.Module, task: Task) -> bytes:
    try:
        content = _bytes(module)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CannotStore(f"its layers cannot be stored: {error}") from error
    _globals(io.BytesIO(content), task)
    return content


def _unpickled(path: Path, task: Task) -> nn.Module:
    allowed = _globals(path, task)
    with torch.serialization.safe_globals(allowed):
        module = torch.load(path, weights_only=True)
    if not isinstance(module, nn.Module):
        raise CannotStore(f"{path} holds no module")
    return module


def _globals(file: Path | io.BytesIO, task: Task) -> list[Any]:
    """What a pickled model is made of; CannotStore for anything that is no part of a model."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    found = []
    for name in names:
        place, _, last = name.rpartition(".")
        value = getattr(_module(place, task), last, None)
        if not _is_part(value, task):
            raise CannotStore(f"{name} is no part of a model that may be stored")
        found.append(value)
    return found


def _module(name: str, task: Task) -> Any:
    if not _is_known(name, task):
        raise CannotStore(f"{name} is no module that models are made of")
    return importlib.import_module(name)


def _is_known(name: str, task: Task) -> bool:
    """Whether *name* is a module of a library of models, or one that the task's file brought."""
    root = name.split(".", maxsplit=1)[0]
    file = Path(getattr(sys.modules.get(name), "__file__", None) or task.path.parent / f"{name}.py")
    return root in LIBRARIES or (file.is_file() and file.is_relative_to(task.path.parent))


def _is_part(value: object, task: Task) -> bool:
    home = getattr(value, "__module__", None) or ""
    if isinstance(value, type):
        if issubclass(value, nn.Module):
            return True
        return _is_known(home, task) and home.split(".")[0] != "torch"
    return callable(value) and home.startswith(("torch.nn.functional", "torch._C._nn"))


def _exported(graph: GraphModule, task: Task) -> bytes:
    buffer = io.BytesIO()
    try:
        with quiet.exporters():
            torch.export.save(torch.export.export(graph, task.example_inputs()), buffer)
    except Exception as error:  # torch.export raises what it likes, and the graph itself is fine
        raise CannotStore(f"its graph cannot be stored: {error}") from error
    return buffer.getvalue()


def _quantised(folder: Path, scheme: str | None) -> Quantised | None:
    if scheme is None:
        return None
    graphs: Mapping[str, Any] = {
        name: torch.export.load(folder / f"{name}.pt2").module() for name in ("folded", "unfolded")
    }
    for graph in graphs.values():
        for part in graph.modules():
            part.training = False  # eval() refuses exported graphs
    return Quantised(**graphs, scheme=scheme)
