"""Which passes may follow which: decided from what each pass declares, before anything runs."""

from __future__ import annotations

from harness.core import plugins
from harness.core.errors import UsageError
from harness.core.types import Recipe, Step

PASSES = "compressors.passes"

#: What a model can have that passes need (``NEEDS``) or end (``BREAKS``), and how a sentence says so.
TRAITS = {
    "float": ("float weights", "turned the weights into integers"),
    "eager": ("a model of layers", "turned the model into a graph"),
    "original_layers": ("the layers of the original model", "replaced layers"),
    "batch_norm": ("batch norm layers", "folded them away"),
}
#: What a freshly trained model has.
START = frozenset(TRAITS)


def traits(name: str, constant: str) -> tuple[str, ...]:
    """What the pass *name* declares as ``NEEDS`` or ``BREAKS``; () if it declares nothing."""
    found: tuple[str, ...] = getattr(plugins.load(PASSES, name), constant, ())
    return found


def _broken_by(step: Step) -> tuple[str, ...]:
    """What *step* ends: ``BREAKS`` of its pass, or where that depends on the options ``breaks(options)``."""
    module = plugins.load(PASSES, step.name)
    if not hasattr(module, "breaks"):
        return traits(step.name, "BREAKS")
    found: tuple[str, ...] = module.breaks(module.Options.model_validate(dict(step.options)))
    return found


def require(recipe: Recipe, where: str) -> None:
    """Refuse a recipe with a step that needs what an earlier step has taken away."""
    broken: dict[str, str] = {}
    for position, step in enumerate(recipe.steps, 1):
        for trait in traits(step.name, "NEEDS"):
            if trait in broken:
                needed, did = TRAITS[trait]
                raise UsageError(
                    f"{where}: step {position} ({step.name}) needs {needed}, but {broken[trait]} {did}.",
                    hint=f"Put {step.name} before it.",
                )
        for trait in _broken_by(step):
            broken.setdefault(trait, f"step {position} ({step.name})")
