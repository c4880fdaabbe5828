"""What flows through the passes of a recipe: the model so far and the surroundings it is worked on in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.fx import GraphModule

from compressors.constraints import Constraint
from compressors.task import Task
from harness.core.types import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """
    One calibrated graph in the two forms that exporters want; both compute the same numbers.

    *folded* holds integer weights, *unfolded* holds float weights with a quantise-dequantise pair behind
    them. Both take a batch of 1, as the example inputs do.
    """

    folded: GraphModule
    unfolded: GraphModule
    scheme: str = "static_int8"  # what exporters must know to choose kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """
    The model after some passes. A pass returns a new State and never changes the module it was given.

    Start from ``state.replaced(module, ...)``: it keeps what is promised. See compressors/PASSES.md.
    """

    module: nn.Module  # eager, in evaluation mode, parameters contiguous and on the CPU
    quantised: Quantised | None = None  # once set, the weights are integers and cannot be trained
    note: str = ""  # what the last pass has to say about its work
    #: What later steps must keep, by parameter name: zeros and shared values.
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    #: Promises that the last pass ended on purpose: parameter name -> why.
    dropped: Mapping[str, str] = field(default_factory=dict)
    #: Bits that a weight needs in storage where that is not its dtype's, by parameter name.
    bits: Mapping[str, int] = field(default_factory=dict)

    @property
    def reference(self) -> nn.Module:
        """The model that exported files are compared with."""
        return self.module if self.quantised is None else self.quantised.folded

    def replaced(
        self,
        module: nn.Module,
        *,
        note: str = "",
        constraints: Mapping[str, Constraint] | None = None,
        dropped: Mapping[str, str] | None = None,
        bits: Mapping[str, int] | None = None,
    ) -> State:
        """A float state with another *module*; promises and bits are kept unless others are given."""
        return State(
            module=module,
            note=note,
            constraints=self.constraints if constraints is None else constraints,
            dropped=dropped or {},
            bits=self.bits if bits is None else bits,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a pass may use besides the model."""

    task: Task
    seed: int
    report: Callable[[Progress], None]
    original: nn.Module  # the trained model before any pass
    before: tuple[str, ...] = ()  # the steps that are done, "train" first
    #: The model after the last step of a name that is in *before*; None if it was not kept.
    earlier: Callable[[str], nn.Module | None] = lambda name: None  # noqa: ARG005
