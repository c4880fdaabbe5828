"""Replace weight matrices and kernels by products of smaller ones: SVD, spatial SVD or Tucker-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError

if TYPE_CHECKING:
    from compressors.state import Context, State

NEEDS = ("float", "eager")
BREAKS = ("original_layers",)


class Options(shared.PassOptions):
    """Options of low_rank."""

    ratio: float | None = Field(
        default=None, gt=0, le=1, description="rank as a share of the full rank; 0.5 if nothing is given"
    )
    energy: float | None = Field(
        default=None, gt=0, lt=1, description="share of the squared singular values that is kept"
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the chosen layers' weights that is left, spent where it keeps most; not tucker",
    )
    rank: int | None = Field(default=None, ge=1, description="the same rank for every chosen layer")
    conv: Literal["spatial", "tucker", "none"] = Field(
        default="spatial", description="how convolutions are split: k x 1 and 1 x k, Tucker-2, or not at all"
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="layers by name, pattern (features.*), re:expression or type; none: all that pay",
    )
    exclude: tuple[str, ...] = Field(default=(), description="layers that stay whole, named like include")
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training after the layers are split"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [n for n in ("ratio", "energy", "budget", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be given: choose one")
        if self.conv == "tucker" and self.budget is not None:
            raise ValueError("budget does not go with conv: tucker; give ratio, energy or rank")
        return self


def apply(state: State, options: Options, context: Context) -> State:
    """The model with the layers that pay replaced by two or three smaller ones, then fine-tuned."""
    if state.quantised is not None:
        raise UsageError("an integer model cannot be split.", hint="Put low_rank before quantise.")
    import copy

    from compressors import layers, splitting, tuning
    from compressors.training import tidy

    found = layers.chosen(state.module, include=options.include, exclude=options.exclude, step="low_rank")
    parts = {name: splitting.of(layer, options.conv) for name, layer in found.items()}
    usable = {name: split for name, split in parts.items() if split is not None}
    if not usable:
        raise NotApplicable(
            f"low_rank does not apply: none of {_some(list(found))} can be split.",
            hint="Grouped, depthwise and transposed convolutions cannot.",
        )
    ranks = _ranks(usable, options)
    paying = {
        name: rank for name, rank in ranks.items() if usable[name].parameters(rank) < usable[name].whole
    }
    _require_smaller(usable, ranks, paying, options)
    module = copy.deepcopy(state.module)
    for name, rank in paying.items():
        module = layers.replace(module, name, usable[name].replacement(rank))
    dropped = _lost(state, list(paying))
    after = state.replaced(
        tidy(module),
        constraints={name: c for name, c in state.constraints.items() if name not in dropped},
        dropped=dropped,
        bits={name: b for name, b in state.bits.items() if name.rpartition(".")[0] not in paying},
        note=_note(usable, ranks, paying),
    )
    return tuning.finetune(after, options.finetune, context, stage="low_rank")


def _ranks(usable: dict[str, Any], options: Options) -> dict[str, Any]:
    """The rank of every layer; of Tucker-2 a pair."""
    from compressors.kernels import factors

    if options.budget is not None:
        values = {name: split.values() for name, split in usable.items()}
        costs = {name: (split.parameters(1), split.whole) for name, split in usable.items()}
        total = sum(split.whole for split in usable.values())
        return dict(factors.ranks_for_budget(values, costs, options.budget * total))
    found: dict[str, Any] = {}
    for name, split in usable.items():
        if options.rank is not None and options.rank > min(split.full):
            raise UsageError(
                f"rank: {options.rank} is larger than {name} has, {min(split.full)}.",
                hint="Choose a smaller rank or exclude the layer.",
            )
        if options.rank is not None:
            found[name] = split.rank([options.rank] * len(split.full))
        elif options.energy is not None:
            found[name] = split.rank([factors.rank_for_energy(v, options.energy) for v in split.spectra()])
        else:
            ratio = 0.5 if options.ratio is None else options.ratio
            found[name] = split.rank([max(1, round(ratio * full)) for full in split.full])
    return found


def _require_smaller(
    usable: dict[str, Any], ranks: dict[str, Any], paying: dict[str, Any], options: Options
) -> None:
    """Refuse ranks that make a layer bigger: where it was asked for by name or rank, or no layer pays."""
    growing = [name for name in ranks if name not in paying]
    if growing and (options.include or options.rank is not None or not paying):
        name = growing[0]
        bigger = usable[name].parameters(ranks[name])
        raise UsageError(
            f"rank {ranks[name]} makes {name} bigger: {bigger:,} weights instead of {usable[name].whole:,}.",
            hint="Choose a smaller ratio, energy, budget or rank, or exclude the layer.",
        )


def _lost(state: State, names: list[str]) -> dict[str, str]:
    return {
        name: "split into low-rank factors"
        for name in state.constraints
        if name.rpartition(".")[0] in names and name.rpartition(".")[2] == "weight"
    } | {
        name: "its layer was split"
        for name in state.constraints
        if name.rpartition(".")[0] in names and name.rpartition(".")[2] != "weight"
    }


def _note(usable: dict[str, Any], ranks: dict[str, Any], paying: dict[str, Any]) -> str:
    told = [f"{name} rank {rank} of {usable[name].full_text}" for name, rank in paying.items()]
    whole = [name for name in ranks if name not in paying]
    text = "; ".join(told[:4]) + (f"; {len(told) - 4} more" if len(told) > 4 else "")
    return text + (f"; whole, because factors would be bigger: {_some(whole)}" if whole else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
