"""Which units go: from scores of units to counts and numbers, by ratio or along one order of removal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The units of one group: a score each, how many there were at first, channels of one unit."""

    scores: Tensor
    first: int
    channels: int = 1
    round_to: int = 1

    @property
    def step(self) -> int:
        """Units that *round_to* lets go or stay together."""
        return self.round_to // math.gcd(self.round_to, self.channels)

    def lowest(self, count: int) -> list[int]:
        """The *count* units with the lowest scores; of equal ones the first."""
        return sorted(self.scores.argsort(stable=True)[:count].tolist())

    def rounded(self, count: int, max_ratio: float) -> int:
        """
        How many units go so that the channels left are a multiple of *round_to*, when *count* should.

        Rounded so that more go, unless more than *max_ratio* of the first would; 0 if nothing fits.
        """
        if not count:
            return 0
        now = len(self.scores)
        least = max(1, math.ceil(self.first * (1 - max_ratio) - 1e-9))
        left = max(now - count, least)
        down = left - left % self.step
        left = down if down >= least else math.ceil(least / self.step) * self.step
        return max(0, now - left)


Layers = Mapping[str, Layer]


def order(layers: Layers, *, together: bool) -> list[str]:
    """
    The layers of the units in the order in which units go; each time the layer's lowest that is left.

    *together*: by score, over all layers. Otherwise so that all layers lose the same share.
    """
    keys: list[tuple[float, int, str]] = []
    for position, (name, layer) in enumerate(layers.items()):
        gone = layer.first - len(layer.scores)
        ranked = layer.scores.sort().values.tolist()
        keys += [
            (score if together else (gone + i) / layer.first, position, name)
            for i, score in enumerate(ranked, 1)
        ]
    return [name for _, _, name in sorted(keys)]


def by_ratio(layers: Layers, ratio: float, *, together: bool, max_ratio: float) -> dict[str, int]:
    """How many units of each layer go so that the share *ratio* of the first ones is gone."""
    if together:
        first = sum(layer.first for layer in layers.values())
        now = sum(len(layer.scores) for layer in layers.values())
        return counted(layers, order(layers, together=True), now - _left(first, ratio), max_ratio)
    return {
        name: layer.rounded(max(0, len(layer.scores) - _left(layer.first, ratio)), max_ratio)
        for name, layer in layers.items()
    }


def _left(first: int, ratio: float) -> int:
    return math.floor(first * (1 - ratio) + 1e-9)


def counted(layers: Layers, names: list[str], count: int, max_ratio: float) -> dict[str, int]:
    """
    How many units of each layer go when the first *count* of *names* do, as far as *max_ratio* lets them.

    A unit that may not go is passed over: the next one in the order goes in its place.
    """
    room = {
        name: len(layer.scores) - max(1, math.ceil(layer.first * (1 - max_ratio) - 1e-9))
        for name, layer in layers.items()
    }
    gone = dict.fromkeys(layers, 0)
    for name in names:
        if count <= 0:
            break
        if gone[name] < room[name]:
            gone[name] += 1
            count -= 1
    return {name: layers[name].rounded(number, max_ratio) for name, number in gone.items()}


def fewest(most: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number from 0 to *most* that *fits*, if every larger one does too; None: none does."""
    if not fits(most):
        return None
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return high


def filled(
    layers: Layers, gone: Mapping[str, int], names: list[str], fits: Callable[[Mapping[str, int]], bool]
) -> dict[str, int]:
    """
    *gone* without the units that need not go: afterwards no unit can come back and the model still *fits*.

    Layers are tried in the reverse order of *names*, so that the last to go is the first to come back.
    """
    found = dict(gone)
    for name in dict.fromkeys(reversed(names)):
        while 0 < layers[name].step <= found[name]:
            more = {**found, name: found[name] - layers[name].step}
            if not fits(more):
                break
            found = more
    return found
