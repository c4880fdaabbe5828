"""Quantise: int8, int4, int16, codebooks, fp16 and bf16, with the same numbers in all files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from compressors.quantising import Plan, Samples
    from compressors.state import Context, State


NEEDS = ("float", "eager")
BREAKS = ("float", "eager")

Granularity = Literal["per_channel", "per_tensor", "per_block"]
_STATIC = ("static_int8", "static_int16")
_INTEGER = (*_STATIC, "dynamic_int8", "weight_only")
#: Options that only some schemes have a use for: to say one elsewhere is a mistake.
_ONLY = {
    "activations": _STATIC,
    "calibrator": _STATIC,
    "percentile": _STATIC,
    "input_scale": ("static_int8",),
    "input_offset": ("static_int8",),
    "bits": (*_INTEGER, "codebook"),
    "block": ("dynamic_int8", "weight_only"),
    **dict.fromkeys(
        (
            *("granularity", "symmetric", "restricted", "power_of_two", "weight_range", "mixed"),
            *("equalise", "bias_correction", "rounding", "rounding_steps"),
        ),
        _INTEGER,
    ),
}


class LayerRule(shared.Options):
    """What some layers have in another way than the rest."""

    match: tuple[str, ...] = Field(
        min_length=1, description="layers by name, pattern (features.*), re:expression or type"
    )
    keep_float: bool = Field(default=False, description="leave these layers in float")
    bits: int | None = Field(default=None, ge=2, le=8, description="bits of a weight; none: as the rest")
    granularity: Granularity | None = Field(default=None, description="scales; none: as the rest")
    block: int | None = Field(default=None, ge=2, le=4096, description="inputs of a block; none: as the rest")


class Mixed(shared.Options):
    """Bits per layer, chosen by what each layer's rounding does to the outputs."""

    budget: float = Field(
        ge=2,
        le=8,
        description="bits that a weight (cost size) or a multiply-accumulate (macs) has on average",
    )
    bits: tuple[int, ...] = Field(default=(8, 4), min_length=1, description="bits that a layer may have")
    cost: Literal["size", "macs"] = Field(default="size", description="what a layer counts for")
    samples: int = Field(default=32, ge=1, le=100_000, description="samples that sensitivity is measured on")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not all(2 <= b <= 8 for b in self.bits):
            raise ValueError(f"bits must be from 2 to 8, found {list(self.bits)}")
        return self


class Options(shared.PassOptions):
    """Options of quantise."""

    scheme: Literal[
        "static_int8", "static_int16", "dynamic_int8", "weight_only", "codebook", "fp16", "bf16"
    ] = Field(
        default="static_int8",
        description="integer weights with activations in int8 (static), int16 (static_int16: LiteRT), int8"
        " by the range of each input (dynamic_int8: best for linear layers) or float (weight_only); weights"
        " from a k-means codebook, or stored in 16-bit floats",
    )
    bits: int = Field(
        default=8, ge=2, le=8, description="bits of a weight; 4 with dynamic_int8 has kernels of its own"
    )
    calibration: int = Field(
        default=256, ge=1, le=100_000, description="samples that the ranges of activations are taken from"
    )
    granularity: Granularity = Field(
        default="per_channel",
        description="one scale for each output channel of a weight, one for all, or one for each block of"
        " inputs (linear layers with dynamic_int8 and weight_only)",
    )
    block: int = Field(default=32, ge=2, le=4096, description="inputs that share a scale with per_block")
    symmetric: bool = Field(default=True, description="weights around zero; else with a zero point")
    restricted: bool = Field(default=True, description="weights in [-127, 127] and not [-128, 127]")
    power_of_two: bool = Field(default=False, description="fixed point: every scale is a power of two")
    activations: Literal["affine", "symmetric"] = Field(
        default="affine", description="activations with a zero point or around zero"
    )
    calibrator: Literal["histogram", "min_max", "percentile", "entropy", "mse"] = Field(
        default="histogram",
        description="how the range of an activation is chosen; histogram is torch's own search",
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="share of the values that percentile keeps, in percent"
    )
    weight_range: Literal["min_max", "mse"] = Field(
        default="min_max", description="range of a weight: all of it, or the part with the least error"
    )
    layers: tuple[LayerRule, ...] = Field(
        default=(), description="layers that are done in another way; the last rule that means a layer holds"
    )
    mixed: Mixed | None = Field(
        default=None, description="bits per layer by measured sensitivity under a budget"
    )
    equalise: bool = Field(
        default=False, description="give both sides of a channel between two layers the same range first"
    )
    bias_correction: bool = Field(
        default=False, description="put what rounding takes from the mean of an output into the bias"
    )
    rounding: Literal["nearest", "learned"] = Field(
        default="nearest", description="learned: up or down by what the layer gives (AdaRound); for few bits"
    )
    rounding_steps: int = Field(
        default=400, ge=1, le=100_000, description="steps of training per layer with rounding learned"
    )
    input_scale: float | None = Field(
        default=None,
        gt=0,
        description="inputs are bytes / input_scale (255 for images in 0..1), so the file's first"
        " conversion gives the bytes back exactly; none: calibrated",
    )
    input_offset: int = Field(default=0, ge=0, le=255, description="byte that stands for 0.0 in the input")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, schemes in _ONLY.items():
            # Not model_fields_set: a recipe's options come back with all their defaults written out.
            if getattr(self, name) != type(self).model_fields[name].default and self.scheme not in schemes:
                raise ValueError(
                    f"{name} has no meaning with scheme {self.scheme}; it belongs to {', '.join(schemes)}"
                )
        blocks = [self.granularity, *(rule.granularity for rule in self.layers)]
        if "per_block" in blocks and self.scheme in _STATIC:
            raise ValueError(
                f"granularity: no runtime computes blocks with scheme {self.scheme};"
                " choose dynamic_int8 or weight_only"
            )
        if self.layers and self.scheme not in (*_INTEGER, "codebook"):
            raise ValueError(f"layers: the scheme {self.scheme} is for the whole model")
        return self


def breaks(options: Options) -> tuple[str, ...]:
    """A codebook leaves weights that can be trained; everything else does not."""
    return () if options.scheme == "codebook" else BREAKS


def apply(state: State, options: Options, context: Context) -> State:
    """The model with integer, shared or 16-bit weights."""
    if state.quantised is not None:
        raise UsageError("the model is quantised already; a recipe has one quantise step.")
    from compressors import narrowing

    if options.scheme == "codebook":
        return narrowing.to_codebook(state, options.bits, options.layers, context.seed)
    if options.scheme in ("fp16", "bf16"):
        return narrowing.to_half(state, options.scheme, context.task.example_inputs())
    return _integers(state, options, context)


def _integers(state: State, options: Options, context: Context) -> State:
    from compressors import integer_graph, quantising, quiet
    from compressors.training import deterministic

    with quiet.exporters(), deterministic(context.seed):
        graph = integer_graph.exported(state.module, context.task.example_inputs())
        notes = []
        if options.equalise:
            notes.append(f"{quantising.equalise(graph)} pairs of layers equalised")
        plans = quantising.chosen(
            state.module, graph, options.layers, lambda name, rule: _plan(graph, name, options, rule)
        )
        samples = _samples(options, context)
        if options.mixed is not None:
            plans = _mixed(graph, plans, options.mixed, samples)
            notes.append(_bits_note(plans))
        needs = options.bias_correction or options.rounding == "learned"
        weights = quantising.integers_of(
            graph,
            plans,
            samples if needs else [],
            correct=options.bias_correction,
            steps=options.rounding_steps,
        )
        quantised = quantising.build(
            graph,
            weights,
            _activations(options),
            scheme=options.scheme,
            calibrate=lambda prepared: _calibrate(prepared, samples, context),
            inputs=_input_spec(options),
        )
        left = sorted(set(integer_graph.layers(graph)) - set(weights))
    if left:
        notes.append(f"in float: {', '.join(name.removesuffix('.weight') for name in left)}")
    return dataclasses.replace(state, note="; ".join(notes), dropped={}, quantised=quantised)


def _samples(options: Options, context: Context) -> Samples:
    from compressors import score

    task = context.task
    batches = task.batches(task.calibration_loader(context.seed), "calibration_loader")
    samples = score.take(batches, options.calibration)
    if not samples:
        raise UsageError(f"the task {task.name} gives no samples to calibrate with.")
    return samples


def _calibrate(prepared: GraphModule, samples: Samples, context: Context) -> None:
    from compressors import score

    for done, sample in enumerate(samples, 1):
        score.forward(prepared, sample, context.task)
        if done % 32 == 0 or done == len(samples):
            context.report(Progress(stage="quantise", done=done, total=len(samples), note="calibrating"))


def _activations(options: Options) -> Any:
    if options.scheme == "weight_only":
        return None
    from compressors.observers import Activations

    return Activations(
        bits=16 if options.scheme == "static_int16" else 8,
        symmetric=options.activations == "symmetric" or options.scheme == "static_int16",
        power_of_two=options.power_of_two and options.scheme != "dynamic_int8",
        calibrator=options.calibrator,
        percentile=options.percentile,
        dynamic=options.scheme == "dynamic_int8",
    )


def _input_spec(options: Options) -> Any:
    if options.input_scale is None:
        return None
    return _activations(options).bytes_in(options.input_scale, options.input_offset)


def _plan(graph: GraphModule, name: str, options: Options, rule: LayerRule | None) -> Plan | None:
    """How the weight *name* becomes integers; None: its layer stays float."""
    from compressors import integer_graph
    from compressors.kernels.affine import Grid
    from compressors.quantising import Plan

    if rule is not None and rule.keep_float:
        return None
    weight = integer_graph.tensor(graph, name)
    granularity = (rule and rule.granularity) or options.granularity
    return Plan(
        grid=Grid(
            bits=(rule and rule.bits) or options.bits,
            symmetric=options.symmetric,
            restricted=options.restricted,
            power_of_two=options.power_of_two,
        ),
        block=_block(weight, granularity, (rule and rule.block) or options.block, name),
        by=options.weight_range,
        learned=options.rounding == "learned",
    )


def _block(weight: Tensor, granularity: str, block: int, name: str) -> int:
    """Inputs per scale; convolutions have no kernels with blocks, so they get one scale per channel."""
    if granularity == "per_tensor":
        return -1
    if granularity == "per_channel" or weight.ndim != 2:
        return 0
    if weight.shape[1] % block:
        if weight.shape[1] < block:
            return 0
        raise UsageError(
            f"block: {name.removesuffix('.weight')} has {weight.shape[1]} inputs, which blocks of {block}"
            " do not divide.",
            hint="Give it its own block or per_channel with layers: [{match: [...], granularity: ...}].",
        )
    return block


def _mixed(graph: GraphModule, plans: dict[str, Plan], mixed: Mixed, samples: Samples) -> dict[str, Plan]:
    """*plans* with the bits that lose least within the budget."""
    from compressors import integer_graph, quantising

    losses = quantising.sensitivities(graph, plans, mixed.bits, samples[: mixed.samples])
    if mixed.cost == "macs":
        sizes = quantising.macs_of_layers(graph)
    else:
        sizes = {name: integer_graph.tensor(graph, name).numel() for name in plans}
    bits = quantising.assign(losses, sizes, mixed.budget)
    return {
        name: dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, bits=bits[name]))
        for name, plan in plans.items()
    }


def _bits_note(plans: dict[str, Plan]) -> str:
    groups: dict[int, list[str]] = {}
    for name, plan in plans.items():
        groups.setdefault(plan.grid.bits, []).append(name.removesuffix(".weight"))
    return "; ".join(f"{bits} bits: {', '.join(names)}" for bits, names in sorted(groups.items()))
