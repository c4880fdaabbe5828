"""Options of plugins are told with type, range, default and what they do; nested ones by their whole name."""

from __future__ import annotations

import json

import pytest

from harness import describe
from harness.cli import run
from harness.core import plugins
from harness.core.errors import UsageError
from harness.core.types import Recipe, Step

PASSES = "compressors.passes"


def option(name: str, of: str) -> describe.Option:
    found = {o.name: o for o in describe.options(plugins.load(PASSES, of).Options)}
    return found[name]


def test_option_has_a_type_a_range_a_default_and_a_sentence() -> None:
    ratio = option("ratio", "prune_channels")
    assert (ratio.type, ratio.range, ratio.default) == ("number or none", "> 0, < 1", None)
    assert ratio.doc == "share of the channels that is removed; 0.5 if nothing is a target"
    assert option("kinds", "prune_channels").type.startswith("list of ")
    assert option("block", "prune_weights").type == "[whole number, whole number] or none"
    assert option("global", "prune_weights").type == "true | false"  # as it is written in a recipe
    assert option("exclude", "prune_weights").type == "list of text"


def test_nested_option_has_the_default_of_where_it_is() -> None:
    assert option("finetune.epochs", "prune_weights").default == 10
    assert option("finetune.epochs", "restructure").default == 0
    assert option("schedule.kind", "prune_weights").type == "one_shot | iterative | cubic"


def test_every_option_of_every_pass_says_what_it_does() -> None:
    for name in plugins.names(PASSES):
        for found in describe.options(plugins.load(PASSES, name).Options):
            assert found.doc, f"{name}.{found.name}"


def test_list_verbose_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "passes", "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert "  finetune.lr: number, > 0, ≤ 10, default 0.001\n      peak learning rate\n" in shown
    assert run(["list", "passes", "--verbose", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"ratio", "finetune.patience"} <= {o["name"] for o in data["prune_weights"]["options"]}


def test_misspelt_nested_option_is_told_with_its_neighbours() -> None:
    from compressors.steps import check_recipe

    recipe = Recipe(name="r", steps=(Step(name="prune_weights", options={"finetune": {"epoch": 3}}),))
    with pytest.raises(UsageError, match=r"no option 'finetune\.epoch'\. Did you mean 'finetune\.epochs'"):
        check_recipe(recipe)
    recipe = Recipe(name="r", steps=(Step(name="low_rank", options={"rank": 3, "ratio": 0.5}),))
    with pytest.raises(
        UsageError, match=r"step 1 \(low_rank\): ratio and rank cannot both be given: choose one\.$"
    ):
        check_recipe(recipe)
