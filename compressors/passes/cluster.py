"""Share weights: every weight becomes one of few values by k-means, and the values are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressors.constraints import Constraint
    from compressors.state import Context, State

NEEDS = ("float", "eager")


class Options(shared.PassOptions):
    """Options of cluster."""

    bits: int | None = Field(
        default=None,
        ge=1,
        le=15,
        description="bits of a weight's number: 2^bits values; 4 if nothing is given",
    )
    clusters: int | None = Field(
        default=None, ge=2, le=32768, description="number of values, instead of bits"
    )
    local: dict[str, int] = Field(
        default={},
        description="bits for some layers: name, pattern, re:expression or type -> bits; the first that fits",
    )
    init: Literal["linear", "density", "random", "kmeans++"] = Field(
        default="linear",
        description="where the values start: evenly over the range (keeps large weights), evenly over the"
        " weights, at random, or far from each other",
    )
    scope: Literal["layer", "group", "model"] = Field(
        default="layer", description="what has one codebook: each layer, each of groups, or the whole model"
    )
    groups: tuple[tuple[str, ...], ...] = Field(
        default=(), description="for scope group: lists of layers, named like include; others have their own"
    )
    zeros: bool = Field(
        default=True, description="weights that are zero stay exactly zero and need no value of the codebook"
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="layers to share by name, pattern (features.*), re:expression or type; none: all",
    )
    exclude: tuple[str, ...] = Field(default=(), description="layers that stay free, named like include")
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training of the shared values"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.bits is not None and self.clusters is not None:
            raise ValueError("bits and clusters cannot both be given: choose one")
        for pattern, bits in self.local.items():
            if not 1 <= bits <= 15:
                raise ValueError(f"local: {pattern} must have from 1 to 15 bits, found {bits}")
        if self.scope == "group" and not self.groups:
            raise ValueError("scope group needs groups: lists of layers")
        if self.groups and self.scope != "group":
            raise ValueError(f"groups need scope: group, found scope: {self.scope}")
        if self.local and self.scope != "layer":
            raise ValueError(f"local needs scope: layer, found scope: {self.scope}")
        return self


def apply(state: State, options: Options, context: Context) -> State:
    """The model with shared weights, its codebooks promised to all later steps and trained."""
    if state.quantised is not None:
        raise UsageError("weights of an integer model cannot be shared.", hint="Put cluster before quantise.")
    import copy
    import dataclasses

    from compressors import constraints, layers, tuning

    found = layers.chosen(state.module, include=options.include, exclude=options.exclude, step="cluster")
    names = layers.parameters_of(state.module, found)
    module = copy.deepcopy(state.module)
    promises: dict[str, Constraint] = {}
    for book, members in _books(options, names, found).items():
        count = _clusters(options, names, members, found)
        for name, promise in _shared(state, members, count, options, context.seed).items():
            promises[name] = dataclasses.replace(promise, book="" if book.startswith("own ") else book)
    _write(module, promises)
    promised = constraints.merged(state.constraints, promises)
    state = state.replaced(module, constraints=promised)
    state = tuning.finetune(state, options.finetune, context, stage="cluster")
    bits = {**state.bits, **{name: _bits(state.module.get_parameter(name)) for name in promises}}
    return state.replaced(state.module, bits=bits, note=_note(state, promises))


def _books(options: Options, names: dict[str, str], found: dict[str, nn.Module]) -> dict[str, list[str]]:
    """The parameters of each codebook; the key is "" and a name where a layer has one of its own."""
    from compressors import layers

    if options.scope == "model":
        return {"cluster": list(names)}
    books: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    of_layer = {layer: parameter for parameter, layer in names.items()}
    own = {layer: found[layer] for layer in of_layer}  # one name of each weight
    for number, patterns in enumerate(options.groups, 1):
        for layer in layers.named(own, patterns, "groups"):
            parameter = of_layer[layer]
            if parameter in owner:
                raise UsageError(f"groups: {layer} is in {owner[parameter]} and in group {number}.")
            owner[parameter] = f"group {number}"
            books.setdefault(f"cluster group {number}", []).append(parameter)
    return books | {f"own {name}": [name] for name in names if name not in owner}


def _clusters(
    options: Options, names: dict[str, str], members: list[str], found: dict[str, nn.Module]
) -> int:
    from compressors import layers

    for pattern, bits in options.local.items():
        if names[members[0]] in layers.named(found, [pattern], "local"):
            return int(2**bits)
    if options.clusters is not None:
        return options.clusters
    return int(2 ** (4 if options.bits is None else options.bits))


def _shared(
    state: State, members: list[str], count: int, options: Options, seed: int
) -> dict[str, Constraint]:
    """Which weights of *members* have one value, by k-means over all of them together."""
    import torch

    from compressors.constraints import Constraint
    from compressors.kernels import kmeans

    weights = [state.module.get_parameter(name).detach() for name in members]
    zeros = [_zeros(state, name, weight, options) for name, weight in zip(members, weights, strict=True)]
    free = torch.cat([weight[~zero] for weight, zero in zip(weights, zeros, strict=True)])
    if not len(free):
        return {name: Constraint(zeros=zero) for name, zero in zip(members, zeros, strict=True)}
    numbers = kmeans.kmeans(free, count, init=options.init, seed=seed)[1]
    found: dict[str, Constraint] = {}
    parts = torch.split(numbers, [int((~zero).sum()) for zero in zeros])
    for name, zero, part in zip(members, zeros, parts, strict=True):
        shared_numbers = torch.full(zero.shape, -1, dtype=torch.int64)
        shared_numbers[~zero] = part
        found[name] = Constraint(zeros=zero if bool(zero.any()) else None, shared=shared_numbers)
    return found


def _zeros(state: State, name: str, weight: Tensor, options: Options) -> Tensor:
    """Where a weight is and stays zero: what was promised, and with *options* what is zero now."""
    import torch

    promise = state.constraints.get(name)
    promised = torch.zeros_like(weight, dtype=torch.bool)
    if promise is not None and promise.zeros is not None:
        promised = promise.zeros
    return promised | (weight == 0) if options.zeros else promised


def _write(module: nn.Module, promises: dict[str, Constraint]) -> None:
    """Give the members of each value their mean, in place."""
    import torch

    books: dict[str, list[str]] = {}
    for name, promise in promises.items():
        if promise.shared is not None:
            books.setdefault(promise.book or name, []).append(name)
    with torch.no_grad():
        for members in books.values():
            weights = [module.get_parameter(name) for name in members]
            numbers = torch.cat([_numbers(promises[name]) for name in members])
            values = torch.cat([weight.flatten() for weight in weights]).double()
            used = numbers >= 0
            count = int(numbers.max()) + 1
            sums = torch.zeros(count, dtype=torch.float64).index_add_(0, numbers[used], values[used])
            sizes = torch.bincount(numbers[used], minlength=count).clamp(min=1)
            values[used] = (sums / sizes)[numbers[used]]
            for weight, part in zip(weights, torch.split(values, [w.numel() for w in weights]), strict=True):
                weight.copy_(part.reshape(weight.shape).to(weight.dtype))


def _numbers(promise: Constraint) -> Tensor:
    assert promise.shared is not None
    return promise.shared.flatten()


def _bits(weight: Tensor) -> int:
    """Bits that tell the values of *weight* apart, zero among them."""
    import torch

    values = torch.unique(weight.detach())
    return max(1, (len(values) - 1).bit_length())


def _note(state: State, promises: dict[str, Constraint]) -> str:
    from compressors.kernels import kmeans

    books: dict[str, int] = {}
    for name, promise in promises.items():
        if promise.shared is not None:
            book = promise.book or name
            books[book] = max(books.get(book, 0), int(promise.shared.max()) + 1)
    total = sum(state.module.get_parameter(name).numel() for name in promises)
    most = max(books.values(), default=1)
    few = f"{total:,} weights have {sum(books.values()):,} values in {len(books)} codebooks"
    return few if most < 2 else f"{few}; {kmeans.rate(total, 32, most):.1f}x smaller before coding"
