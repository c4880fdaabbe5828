"""Promises about weights that later steps keep: zeros stay zero, shared values stay shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """
    What is promised of one parameter; both tensors have its shape.

    *shared* numbers the values: weights with the same number have one value, -1 is free. Parameters with
    the same *book* count in one codebook, so that values are shared across layers; "" is a book of its own.
    """

    zeros: Tensor | None = None  # bool: True where the weight is and stays zero
    shared: Tensor | None = None  # int64
    book: str = ""


Constraints = Mapping[str, Constraint]


def zeros_of(module: nn.Module, names: Iterable[str]) -> dict[str, Constraint]:
    """The promise that what is zero now in the parameters *names* stays zero."""
    parameters = dict(module.named_parameters())
    return {name: Constraint(zeros=parameters[name].detach() == 0) for name in names}


def merged(old: Constraints, new: Constraints) -> dict[str, Constraint]:
    """Both promises: zeros of either, the codebook of *new* where it has one."""
    found = dict(old)
    for name, constraint in new.items():
        before = old.get(name, Constraint())
        zeros = [z for z in (before.zeros, constraint.zeros) if z is not None]
        book = constraint if constraint.shared is not None else before
        found[name] = Constraint(
            zeros=torch.stack(zeros).any(0) if zeros else None, shared=book.shared, book=book.book
        )
    return found


def kept(constraints: Constraints, module: nn.Module) -> tuple[dict[str, Constraint], list[str]]:
    """What still fits *module* by name and shape and still holds there, and the names of the rest."""
    parameters = dict(module.named_parameters())
    fitting = {
        name: c for name, c in constraints.items() if name in parameters and _fits(c, parameters[name])
    }
    holding = {name: c for name, c in fitting.items() if broken(module, {name: c}) is None}
    return holding, [name for name in constraints if name not in holding]


def sliced(constraints: Constraints, module: nn.Module) -> tuple[dict[str, Constraint], list[str]]:
    """
    The promises for *module*, from whose weights a pass cut parts but changed no value, and lost names.

    Zeros are where the weight is zero, shared values where weights are equal: cutting keeps both.
    """
    parameters = dict(module.named_parameters())
    present = {name: c for name, c in constraints.items() if name in parameters}
    found: dict[str, Constraint] = {}
    for name, constraint in present.items():
        zeros = parameters[name].detach() == 0 if constraint.zeros is not None else None
        found[name] = Constraint(zeros=zeros, book=constraint.book)
    for members in _books(present).values():
        values = _flat(parameters[name] for name in members)
        parts = torch.split(
            torch.unique(values, return_inverse=True)[1], [parameters[n].numel() for n in members]
        )
        for name, part in zip(members, parts, strict=True):
            shared = part.reshape(parameters[name].shape)
            found[name] = Constraint(zeros=found[name].zeros, shared=shared, book=constraints[name].book)
    return found, [name for name in constraints if name not in parameters]


def _fits(constraint: Constraint, parameter: Tensor) -> bool:
    return all(t is None or t.shape == parameter.shape for t in (constraint.zeros, constraint.shared))


@torch.no_grad()
def project(module: nn.Module, constraints: Constraints) -> None:
    """Make the promises true in place: zeros become zero, shared weights the value of their first member."""
    parameters = dict(module.named_parameters())
    for members in _books(constraints).values():
        values = _flat(parameters[name] for name in members)
        numbers = torch.cat([_numbers(constraints[name]) for name in members])
        used = numbers >= 0
        first = torch.full((int(numbers.max()) + 1,), len(numbers), dtype=torch.int64)
        first.scatter_reduce_(0, numbers[used], used.nonzero().flatten(), "amin")
        values[used] = values[first[numbers[used]]]
        _write(values, [parameters[name] for name in members])
    for name, constraint in constraints.items():
        if constraint.zeros is not None:
            parameters[name].masked_fill_(constraint.zeros, 0.0)


@torch.no_grad()
def gather_gradients(module: nn.Module, constraints: Constraints) -> None:
    """
    Give every weight the gradient of what is really trained, in place; to be called before a step.

    That of a shared value is the sum of its members' gradients (Han 2016, arXiv:1510.00149, eq. 3), that
    of a promised zero is 0. Every optimiser that works weight by weight then moves all members of a value
    alike, exactly as if the value itself was the parameter.
    """
    parameters = dict(module.named_parameters())
    for name, constraint in constraints.items():
        gradient = parameters[name].grad
        if constraint.zeros is not None and gradient is not None:
            gradient.masked_fill_(constraint.zeros, 0.0)
    for members in _books(constraints).values():
        found = [parameters[name].grad for name in members]
        gradients = [g for g in found if g is not None]
        if len(gradients) < len(members):
            continue  # frozen, so nothing moves
        values = _flat(gradients)
        numbers = torch.cat([_numbers(constraints[name]) for name in members])
        used = numbers >= 0
        sums = torch.zeros(int(numbers.max()) + 1, dtype=values.dtype)
        sums.index_add_(0, numbers[used], values[used])
        values[used] = sums[numbers[used]]
        _write(values, gradients)


def broken(module: nn.Module, constraints: Constraints) -> str | None:
    """The first promise that does not hold in *module*, as the rest of a sentence; None: all hold."""
    parameters = dict(module.named_parameters())
    for name, constraint in constraints.items():
        weight = parameters.get(name)
        if weight is None:
            return f"the model has no parameter {name!r} any more, of which zeros or values were promised"
        if not _fits(constraint, weight):
            return f"{name} has the shape {list(weight.shape)}, which its promise does not have"
        if constraint.zeros is not None and (lost := int(weight[constraint.zeros].count_nonzero())):
            return f"{lost} of the {int(constraint.zeros.sum())} zeros of {name} are not zero any more"
    for members in _books(constraints).values():
        values = _flat(parameters[name] for name in members)
        numbers = torch.cat([_numbers(constraints[name]) for name in members])
        if int(numbers.max()) < 0:
            continue
        used = numbers >= 0
        low = torch.full((int(numbers.max()) + 1,), torch.inf, dtype=values.dtype)
        high = -low
        low.scatter_reduce_(0, numbers[used], values[used], "amin")
        high.scatter_reduce_(0, numbers[used], values[used], "amax")
        if split := int((high > low).sum()):
            return f"{split} of the shared values of {', '.join(members)} are not shared any more"
    return None


def weaker(
    before: Constraints, after: Constraints, dropped: Mapping[str, str], module: nn.Module
) -> str | None:
    """The first parameter whose promise was lost without a word; None: every promise is kept or dropped."""
    shapes = dict(module.named_parameters())
    for name, old in before.items():
        if name in dropped:
            continue
        new = after.get(name, Constraint())
        resized = name in shapes and not _fits(old, shapes[name])
        if old.zeros is not None and (new.zeros is None or (not resized and _lost(old.zeros, new.zeros))):
            return name
        if old.shared is not None and new.shared is None:
            return name
    return None


def _lost(old: Tensor, new: Tensor) -> bool:
    return old.shape != new.shape or bool((old & ~new).any())


def _numbers(constraint: Constraint) -> Tensor:
    """The flat numbers of the shared values; promised zeros are no members of any."""
    assert constraint.shared is not None
    numbers = constraint.shared
    if constraint.zeros is not None:
        numbers = numbers.masked_fill(constraint.zeros, -1)
    return numbers.flatten()


def _books(constraints: Constraints) -> dict[str, list[str]]:
    """The parameters of every codebook that has members."""
    found: dict[str, list[str]] = {}
    for name, constraint in constraints.items():
        if constraint.shared is not None and int(_numbers(constraint).max()) >= 0:
            found.setdefault((constraint.book and f"book {constraint.book}") or name, []).append(name)
    return found


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def _write(values: Tensor, places: list[Tensor]) -> None:
    parts = torch.split(values, [place.numel() for place in places])
    for part, place in zip(parts, places, strict=True):
        place.copy_(part.reshape(place.shape))
