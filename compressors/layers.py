"""Find, count and replace the layers of a model, by name, pattern, regular expression or type."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from harness.core import plugins
from harness.core.errors import NotApplicable, UsageError

#: Layers whose weight is a matrix or a stack of kernels.
WEIGHTED = (nn.Linear, _ConvNd)


def weighted(module: nn.Module, kinds: tuple[type[nn.Module], ...] = WEIGHTED) -> dict[str, nn.Module]:
    """The layers of *module* with a float weight, by name, in the order of the model; a shared one once."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer that :func:`weighted` found."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def matching(layers: Mapping[str, nn.Module], pattern: str) -> list[str]:
    """Names that *pattern* means: a name, a glob, ``re:`` and an expression, or a type (``Linear``)."""
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}.") from error
        return [name for name in layers if expression.search(name)]
    of_type = [name for name, layer in layers.items() if type(layer).__name__ == pattern]
    return of_type or fnmatch.filter(layers, pattern)


def named(layers: Mapping[str, nn.Module], patterns: Iterable[str], option: str) -> list[str]:
    """The names that any of *patterns* means, in the order of *layers*; UsageError for one without any."""
    chosen: set[str] = set()
    for pattern in patterns:
        found = matching(layers, pattern)
        if not found:
            unknown = plugins.unknown("layer", pattern, layers)
            raise UsageError(f"{option}: {unknown.message}", hint=unknown.hint)
        chosen.update(found)
    return [name for name in layers if name in chosen]


def chosen(
    module: nn.Module,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: tuple[type[nn.Module], ...] = WEIGHTED,
    step: str,
    what: str = "convolution or linear layer",
) -> dict[str, nn.Module]:
    """
    The layers that a step works on: *include* (nothing: all) without *exclude*.

    Raises NotApplicable if the model has no such layer at all or none is left.
    """
    layers = weighted(module, kinds)
    if not layers:
        raise NotApplicable(f"{step} does not apply: the model has no {what}.")
    include, exclude = tuple(include), tuple(exclude)
    inside = named(layers, include, "include") if include else list(layers)
    outside = set(named(layers, exclude, "exclude"))
    left = {name: layers[name] for name in inside if name not in outside}
    if not left:
        raise NotApplicable(f"{step} has nothing to do: every {what} is excluded.")
    return left


def replace(module: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """*module*, changed in place, with *new* where *name* was; *new* itself if *name* is the whole model."""
    if not name:
        return new
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)
    return module


def parameter_name(layer: str, key: str = "weight") -> str:
    """What State.constraints calls the parameter *key* of *layer*."""
    return f"{layer}.{key}" if layer else key


def parameters_of(module: nn.Module, chosen: Mapping[str, nn.Module]) -> dict[str, str]:
    """Parameter name -> layer name of the weights of *chosen*; a weight that layers share is there once."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, str] = {}
    for name, layer in chosen.items():
        found.setdefault(names[id(weight_of(layer))], name)
    return found
