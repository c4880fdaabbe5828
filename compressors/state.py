"""What flows through the passes of a recipe: the model so far and the surroundings it is worked on in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

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


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The model after some passes. A pass returns a new State and never changes the module it was given."""

    module: nn.Module  # eager, in evaluation mode, parameters contiguous and on the CPU
    quantised: Quantised | None = None  # once set, the weights are integers and cannot be trained
    note: str = ""  # what the last pass has to say about its work

    @property
    def reference(self) -> nn.Module:
        """The model that exported files are compared with."""
        return self.module if self.quantised is None else self.quantised.folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a pass may use besides the model."""

    task: Task
    seed: int
    report: Callable[[Progress], None]
    original: nn.Module  # the trained model before any pass
