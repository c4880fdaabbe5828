"""Tie layers of equal shape, or make convolutions of few kernels that all share; then train again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressors.state import Context, State

NEEDS = ("float", "eager")
BREAKS = ("original_layers",)


class Options(shared.PassOptions):
    """Options of share."""

    what: Literal["layers", "kernels"] = Field(
        default="layers",
        description="layers: those of one type, shape and setting become one; kernels: every kernel of a"
        " convolution is one of few prototypes",
    )
    start: Literal["mean", "first"] = Field(
        default="mean", description="layers: the weights that tied layers begin with"
    )
    kernels: int = Field(default=32, ge=1, le=32767, description="kernels: how many prototypes")
    scales: bool = Field(
        default=True,
        description="kernels: each use has a factor of its own; false: kernels are equal, layers stay plain"
        " convolutions and later steps keep the sharing",
    )
    across_layers: bool = Field(
        default=False, description="kernels: one dictionary for all layers with kernels of one size"
    )
    include: tuple[str, ...] = Field(
        default=(), description="layers by name, pattern (features.*), re:expression or type; none: all"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, named like include"
    )
    finetune: shared.FineTuning = Field(default=shared.FineTuning(), description="training afterwards")


def apply(state: State, options: Options, context: Context) -> State:
    """The model with shared layers or kernels, trained; the note says how many parameters are left."""
    if state.quantised is not None:
        raise UsageError("weights of an integer model cannot be shared.", hint="Put share before quantise.")
    import dataclasses

    from compressors import counting, tuning

    before = counting.parameters(state.module)
    shared_state = _tied(state, options) if options.what == "layers" else _dictionary(state, options, context)
    trained = tuning.finetune(shared_state, options.finetune, context, stage="share")
    unique = f"{_unique(trained.module, options):,} unique parameters of {before:,}"
    return dataclasses.replace(trained, note=f"{shared_state.note}; {unique}")


def _unique(module: nn.Module, options: Options) -> int:
    """Parameters, but each group of kernels that must stay equal counts once."""
    import torch

    from compressors import counting

    total = counting.parameters(module)
    if options.what == "layers" or options.scales:
        return total
    for parameter in module.parameters():
        if parameter.ndim > 2:
            rows = parameter.detach().flatten(2).flatten(0, 1)
            total -= (len(rows) - len(torch.unique(rows, dim=0))) * rows.shape[1]
    return total


def _tied(state: State, options: Options) -> State:
    import copy

    import torch

    from compressors import constraints, layers, sharing
    from compressors.training import tidy

    chosen = layers.chosen(state.module, include=options.include, exclude=options.exclude, step="share")
    groups = sharing.alike(chosen)
    if not groups:
        raise NotApplicable(
            f"share does not apply: no two of {', '.join(chosen)} have one type, shape and setting.",
            hint="what: kernels shares the kernels of convolutions.",
        )
    module = copy.deepcopy(state.module)
    gone: dict[str, str] = {}
    for first, *others in groups:
        keeper = module.get_submodule(first)
        for key, kept in keeper.named_parameters(recurse=False):
            copies = [module.get_submodule(name).get_parameter(key) for name in others]
            if options.start == "mean":
                with torch.no_grad():
                    kept.copy_(torch.stack([kept, *copies]).mean(0))
            for name in others:
                setattr(module.get_submodule(name), key, kept)
                gone[layers.parameter_name(name, key)] = f"tied to {first}"
    promises = {name: c for name, c in state.constraints.items() if name not in gone}
    constraints.project(module, promises)
    told = "; ".join(f"{', '.join(names)} are one layer" for names in groups)
    return state.replaced(
        tidy(module),
        constraints=promises,
        dropped={name: why for name, why in gone.items() if name in state.constraints},
        bits={name: bits for name, bits in state.bits.items() if name not in gone},
        note=told,
    )


def _dictionary(state: State, options: Options, context: Context) -> State:
    import copy

    from compressors import layers, sharing

    convs = layers.chosen(
        state.module,
        include=options.include,
        exclude=options.exclude,
        kinds=sharing.CONVS,
        step="share",
        what="convolution",
    )
    names = layers.parameters_of(state.module, convs)
    fitting = {p: n for p, n in names.items() if _can_share(convs[n])}
    books: dict[object, list[str]] = {}
    for parameter in fitting:
        size = tuple(state.module.get_parameter(parameter).shape[2:])
        books.setdefault(size if options.across_layers else parameter, []).append(parameter)
    many = [names for names in books.values() if _kernels(state, names) > options.kernels]
    if not many:
        raise NotApplicable(
            f"share does not apply: no convolution has more than {options.kernels} kernels of more than one"
            " weight, without padding modes.",
            hint="Give fewer kernels, or what: layers.",
        )
    module = copy.deepcopy(state.module)
    after = state.replaced(module)
    for members in many:
        if options.scales:
            after = _scaled(after, members, fitting, options, context)
        else:
            after = _equal(after, members, options, context)
    uses = sum(_kernels(state, members) for members in many)
    note = f"{uses:,} kernels are {options.kernels * len(many):,} prototypes in {len(many)} dictionaries"
    return state.replaced(
        after.module, constraints=after.constraints, dropped=after.dropped, bits=after.bits, note=note
    )


def _can_share(conv: nn.Module) -> bool:
    weight = conv.get_parameter("weight")
    return weight[0, 0].numel() > 1 and getattr(conv, "padding_mode", "zeros") == "zeros"


def _kernels(state: State, members: list[str]) -> int:
    return sum(state.module.get_parameter(name)[:, :, 0].shape[:2].numel() for name in members)


def _rows(module: nn.Module, members: list[str]) -> tuple[Tensor, list[int]]:
    """The kernels of *members* as rows, and how many each member has."""
    import torch

    parts = [module.get_parameter(name).detach().flatten(2).flatten(0, 1) for name in members]
    return torch.cat(parts), [len(part) for part in parts]


def _scaled(
    state: State, members: list[str], names: dict[str, str], options: Options, context: Context
) -> State:
    """Convolutions as prototypes with factors; promises about their weights end."""
    import torch
    from torch import nn

    from compressors import layers, sharing
    from compressors.training import tidy

    rows, counts = _rows(state.module, members)
    found, numbers, factors = sharing.prototypes(rows, options.kernels, context.seed, scaled=True)
    book = nn.Parameter(found.reshape(-1, *state.module.get_parameter(members[0]).shape[2:]))
    module = state.module
    for name, number, factor in zip(
        members, torch.split(numbers, counts), torch.split(factors, counts), strict=True
    ):
        conv = module.get_submodule(names[name])
        shape = conv.get_parameter("weight").shape[:2]
        new = sharing.PrototypeConv(conv, book, factor.reshape(shape), number.reshape(shape))
        module = layers.replace(module, names[name], new)
    why = "its kernels are prototypes with factors"
    return state.replaced(
        tidy(module),
        constraints={name: c for name, c in state.constraints.items() if name not in members},
        dropped={**state.dropped, **{name: why for name in members if name in state.constraints}},
        bits={name: bits for name, bits in state.bits.items() if name not in members},
    )


def _equal(state: State, members: list[str], options: Options, context: Context) -> State:
    """Plain convolutions whose kernels are equal where they share one, promised to all later steps."""
    import torch

    from compressors import constraints, sharing

    rows, counts = _rows(state.module, members)
    found, numbers, _ = sharing.prototypes(rows, options.kernels, context.seed, scaled=False)
    new: dict[str, constraints.Constraint] = {}
    book = f"share {members[0]}" if len(members) > 1 else ""
    for name, part in zip(members, torch.split(numbers, counts), strict=True):
        weight = state.module.get_parameter(name)
        size = found.shape[1]
        shared_numbers = (part[:, None] * size + torch.arange(size)).reshape(weight.shape)
        with torch.no_grad():
            weight.copy_(found[part].reshape(weight.shape))
        new[name] = constraints.Constraint(shared=shared_numbers, book=book)
    dropped = dict(state.dropped)
    old = dict(state.constraints)
    for name in members:
        if name in old:
            dropped[name] = "its kernels are shared"
            del old[name]
    return state.replaced(state.module, constraints={**old, **new}, dropped=dropped)
