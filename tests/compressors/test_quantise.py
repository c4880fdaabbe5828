"""quantise: every scheme and option on small models, what it corrects, what it keeps, what it refuses."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from compressors import constraints, integer_graph, order, quantising, score
from compressors.kernels.affine import Grid
from compressors.passes import quantise
from compressors.quantising import Plan
from compressors.state import State
from compressors.steps import check_recipe
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable, UsageError
from harness.core.types import Recipe, Step
from tests.compressors.models import MODELS, Trained, run_pass, trained


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


QUICK = {"calibration": 32}
NONE = {"finetune": {"epochs": 0}}


def weights_of(state: State) -> dict[str, Any]:
    assert state.quantised is not None
    return integer_graph.integers_in(state.quantised.unfolded)


def noise(state: State, model: Trained) -> float:
    """The power of what the state's answers differ by from the float model's, over 32 samples."""
    total = 0.0
    for sample in score.samples(model.task, 32):
        (a,), (b,) = (score.forward(m, sample, model.task) for m in (state.module, state.reference))
        total += float((a - b).square().sum())
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["static_int8", "dynamic_int8", "weight_only", "codebook", "fp16"])
def test_every_scheme_works_on_every_kind_of_model(name: str, scheme: str) -> None:
    model = trained(name)
    options = {"static_int8": QUICK, "codebook": {"bits": 5}}.get(scheme, {})
    _, report = run_pass("quantise", {"scheme": scheme, **options}, model)
    assert report.bytes is not None
    assert model.report.bytes is not None
    assert report.bytes < model.report.bytes * (0.6 if scheme == "fp16" else 0.5)
    assert report.score == pytest.approx(model.report.score, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "per_tensor"},
        {"activations": "symmetric"},
        {"symmetric": False, "restricted": False},
        {"power_of_two": True},
        {"weight_range": "mse", "bits": 4},
        *({"calibrator": name} for name in ("min_max", "percentile", "entropy", "mse")),
        {"equalise": True, "bias_correction": True},
    ],
    ids=str,
)
def test_options_of_static_int8(options: dict[str, Any]) -> None:
    model = trained("plain")
    state, report = run_pass("quantise", {**QUICK, **options}, model)
    assert report.score == pytest.approx(model.report.score, abs=0.04)
    weights = weights_of(state)
    if options.get("power_of_two"):
        assert all((torch.frexp(i.scale)[0] == 0.5).all() for i in weights.values())
        assert state.quantised is not None
        nodes = state.quantised.folded.graph.nodes
        steps = [n.args[1] for n in nodes if "quantize_per_tensor" in str(n.target)]
        assert steps
        assert all(torch.frexp(torch.tensor(step))[0] == 0.5 for step in steps)
    if options.get("symmetric") is False:
        assert all(i.codes.min() == -128 and i.codes.max() == 127 for i in weights.values())
    assert all(i.block == (-1 if "granularity" in options else 0) for i in weights.values())


def test_folded_and_unfolded_hold_the_same_codes() -> None:
    state, _ = run_pass(
        "quantise", {"bits": 3, "rounding": "learned", "rounding_steps": 30}, trained("plain")
    )
    assert state.quantised is not None
    constants = [b for n, b in state.quantised.folded.named_buffers() if n.startswith("_frozen")]
    for one, two in zip(constants, weights_of(state).values(), strict=True):
        assert torch.equal(one, two.codes)
        assert two.bits == 3


def test_layers_are_chosen_by_name_pattern_and_type_and_the_last_rule_holds() -> None:
    rules = [
        {"match": ["Conv2d"], "bits": 6},
        {"match": ["re:^2$"], "keep_float": True},
        {"match": ["8"], "bits": 4, "granularity": "per_tensor"},
    ]
    state, report = run_pass("quantise", {**QUICK, "layers": rules}, trained("plain"))
    found = {name: (i.bits, i.block) for name, i in weights_of(state).items()}
    assert found == {"0.weight": (6, 0), "6.weight": (8, 0), "8.weight": (4, -1)}
    assert report.note == "in float: 2"
    with pytest.raises(UsageError, match=r"layers\.match: There is no layer '9'"):
        run_pass("quantise", {"layers": [{"match": ["9"], "bits": 4}]}, trained("plain"))
    with pytest.raises(NotApplicable, match="no convolution or linear layer is left"):
        run_pass("quantise", {"layers": [{"match": ["*"], "keep_float": True}]}, trained("plain"))


def test_blocks_have_their_own_scales() -> None:
    options = {"scheme": "dynamic_int8", "bits": 4, "granularity": "per_block", "block": 16}
    state, report = run_pass("quantise", options, trained("plain"))
    found = weights_of(state)
    assert found["6.weight"].scale.shape == (48 * 64 // 16,)
    assert found["0.weight"].block == 0  # convolutions have no such kernels
    _, whole = run_pass("quantise", {"scheme": "dynamic_int8", "bits": 4}, trained("plain"))
    ratio = {
        r: next(c.sqnr_db for c in rep.layers if c.name == "6") for r, rep in (("b", report), ("c", whole))
    }
    assert ratio["b"] > ratio["c"]  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"block: 8 has 48 inputs, which blocks of 20 do not divide"):
        run_pass(
            "quantise", {**options, "block": 20, "layers": [{"match": ["6"], "block": 16}]}, trained("plain")
        )


def test_input_is_the_byte_that_it_came_from() -> None:
    """T16: digits are 0..16 / 16; with scale 16 every input is exact, and its scale is 1/16."""
    state, _ = run_pass("quantise", {**QUICK, "input_scale": 16.0}, trained("plain"))
    assert state.quantised is not None
    nodes = state.quantised.folded.graph.nodes
    (first,) = [n for n in nodes if "quantize_per_tensor" in str(n.target) and n.args[0].op == "placeholder"]
    assert first.args[1:3] == (1 / 16, -128)
    (sample,) = score.samples(trained("plain").task, 1)[0]
    codes = first.target(sample, *first.args[1:])
    assert torch.equal(codes.int() + 128, (sample * 16).int())


def test_zeros_survive_every_integer_scheme() -> None:
    plain = trained("plain")
    pruned, before = run_pass("prune_weights", {"ratio": 0.6, **NONE}, plain)
    for options in (
        {**QUICK, "bits": 4, "rounding": "learned", "rounding_steps": 20, "equalise": True},
        {**QUICK, "symmetric": False},
        {"scheme": "dynamic_int8", "bits": 4},
        {"scheme": "weight_only"},
        {"scheme": "fp16"},
        {"scheme": "codebook", "bits": 3},
    ):
        after, report = run_pass("quantise", options, plain, after=pruned)
        assert report.sparsity >= before.sparsity  # type: ignore[operator]
        assert after.constraints.keys() == pruned.constraints.keys()


def test_codebook_can_be_trained_and_stays_one() -> None:
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, **NONE}, plain)
    shared, report = run_pass("quantise", {"scheme": "codebook", "bits": 3}, plain, after=pruned)
    for name, promise in shared.constraints.items():
        assert len(set(shared.module.get_parameter(name).flatten().tolist())) <= 8
        assert promise.shared is not None
    tuned, _ = run_pass("finetune", {"epochs": 1}, plain, after=shared)
    assert constraints.broken(tuned.module, shared.constraints) is None
    assert "no runtime has kernels for codebooks" in report.note
    biases = sum(p.numel() for p in plain.state.module.parameters() if p.ndim == 1)
    rest = plain.report.parameters - biases
    assert report.bytes == pytest.approx(rest * 3 / 8 + 4 * biases + 4 * 4 * 8, abs=8)
    recipe = Recipe(
        name="r", steps=(Step(name="quantise", options={"scheme": "codebook"}), Step(name="finetune"))
    )
    order.require(recipe, "r")


def test_per_tensor_integers_keep_a_codebook() -> None:
    plain = trained("plain")
    shared, _ = run_pass("quantise", {"scheme": "codebook", "bits": 3}, plain)
    after, _ = run_pass(
        "quantise", {**QUICK, "granularity": "per_tensor", "allow_growth": True}, plain, after=shared
    )
    assert all(len(i.codes.unique()) <= 8 for i in weights_of(after).values())


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return tidy(nn.Sequential(*layers))


def test_bias_correction_brings_the_mean_back() -> None:
    """Inputs with a mean: what rounding to 3 bits takes from each output's mean is put into its bias."""
    module: Any = net(nn.Linear(16, 8))
    samples: quantising.Samples = [(torch.rand(1, 16) + 1,) for _ in range(64)]
    graph = integer_graph.exported(module, samples[0])
    plans = {"0.weight": Plan(grid=Grid(bits=3))}
    x = torch.cat([s[0] for s in samples])
    shifts = []
    for correct in (False, True):
        changed = copy.deepcopy(graph)
        (integers,) = quantising.integers_of(changed, plans, samples, correct=correct, steps=1).values()
        y = x @ integers.dequantised().T + integer_graph.tensor(changed, "0.bias")
        shifts.append((y - module(x)).mean(0).abs().max().item())
    assert shifts[0] > 0.05
    assert shifts[1] < 1e-5


@pytest.mark.parametrize("second", ["linear", "conv", "depthwise"])
def test_equalisation_computes_the_same_and_rounds_better(second: str) -> None:
    """Channels of very different size; per-tensor scales lose the small ones until both sides are even."""
    spread = 2.0 ** -torch.arange(8.0)
    if second == "linear":
        module: Any = net(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        sample = (torch.rand(1, 6),)
    else:
        groups = 8 if second == "depthwise" else 1
        module = net(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups))
        sample = (torch.rand(1, 2, 8, 8),)
    with torch.no_grad():
        module[0].weight.mul_(spread.reshape(-1, *[1] * (module[0].weight.ndim - 1)))
        module[0].bias.mul_(spread)
        shape = (-1, 1, 1, 1) if second == "depthwise" else (1, -1) if second == "linear" else (1, -1, 1, 1)
        module[2].weight.div_(spread.reshape(shape))
    plain = integer_graph.exported(module, sample)
    even = copy.deepcopy(plain)
    assert quantising.equalise(even) == 1
    assert torch.allclose(even(*sample), module(*sample), atol=1e-4)
    errors = []
    for graph in (plain, even):
        rounded = copy.deepcopy(graph)
        for name in integer_graph.layers(graph):
            integers = Plan(grid=Grid(bits=6), block=-1).integers(integer_graph.tensor(graph, name))
            integer_graph.set_tensor(rounded, name, integers.dequantised())
        errors.append(float((rounded(*sample) - module(*sample)).square().mean()))
    assert errors[1] < 0.3 * errors[0]


def test_learned_rounding_beats_nearest_at_three_bits() -> None:
    plain = trained("plain")
    common = {"calibration": 64, "bits": 3, "scheme": "weight_only"}
    nearest, _ = run_pass("quantise", common, plain)
    learned, _ = run_pass("quantise", {**common, "rounding": "learned", "rounding_steps": 150}, plain)
    assert noise(learned, plain) < 0.7 * noise(nearest, plain)


def test_mixed_precision_is_the_best_assignment_within_the_budget() -> None:
    """Against every assignment there is: never over the budget, and none within it loses less."""
    generator = random.Random(0)
    sizes = {f"l{i}": generator.randint(10, 500) for i in range(6)}
    losses = {n: {b: generator.random() * 4.0**-b * 100 for b in (2, 4, 8)} for n in sizes}
    for budget in (2.0, 3.3, 5.0, 7.9, 8.0):
        found = quantising.assign(losses, sizes, budget)
        allowed = budget * sum(sizes.values()) + 1e-9
        assert sum(found[n] * sizes[n] for n in sizes) <= allowed
        every = itertools.product((2, 4, 8), repeat=6)
        within = [w for w in every if sum(b * s for b, s in zip(w, sizes.values(), strict=True)) <= allowed]
        best = min(sum(losses[n][b] for n, b in zip(sizes, w, strict=True)) for w in within)
        assert sum(losses[n][b] for n, b in found.items()) == pytest.approx(best)
    with pytest.raises(UsageError, match=r"mixed\.budget: 1.5 bits cannot be reached; the fewest .* are 2"):
        quantising.assign(losses, sizes, 1.5)


@pytest.mark.parametrize("cost", ["size", "macs"])
def test_mixed_precision_beats_random_bits_at_the_same_budget(cost: str) -> None:
    plain = trained("plain")
    common = {"scheme": "weight_only", "calibration": 32}
    state, report = run_pass(
        "quantise", {**common, "mixed": {"budget": 4, "bits": [2, 4, 8], "cost": cost}}, plain
    )
    found = weights_of(state)
    graph = integer_graph.exported(plain.state.module, plain.task.example_inputs())
    sizes = {n: i.codes.numel() for n, i in found.items()}
    if cost == "macs":
        sizes = quantising.macs_of_layers(graph)
        assert sum(sizes.values()) == plain.report.macs
    allowed = 4 * sum(sizes.values())
    assert sum(i.bits * sizes[n] for n, i in found.items()) <= allowed
    assert "bits: " in report.note
    every = [dict(zip(sizes, w, strict=True)) for w in itertools.product((2, 4, 8), repeat=len(sizes))]
    within = [
        w for w in every if 3 * sum(sizes.values()) < sum(b * sizes[n] for n, b in w.items()) <= allowed
    ]
    others = random.Random(0).sample(within, 4)
    worse = []
    for bits in others:
        rules = [{"match": [name.removesuffix(".weight")], "bits": b} for name, b in bits.items()]
        worse.append(noise(run_pass("quantise", {**common, "layers": rules}, plain)[0], plain))
    assert noise(state, plain) <= sum(worse) / len(worse)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"granularity": "per_block"}, "granularity: no runtime computes blocks with scheme static_int8"),
        ({"scheme": "fp16", "bits": 4}, "bits has no meaning with scheme fp16; it belongs to static_int8"),
        ({"scheme": "dynamic_int8", "calibrator": "mse"}, "calibrator has no meaning with scheme dynamic"),
        ({"bits": 1}, "bits: .*greater than or equal to 2, found 1"),
        ({"mixed": {"budget": 4, "bits": [8, 16]}}, r"mixed: bits must be from 2 to 8, found \[8, 16\]"),
        ({"layers": [{"match": []}]}, r"layers\.0\.match"),
        ({"percentile": 20}, "percentile: .*greater than 50, found 20"),
        ({"scheme": "codebook", "input_scale": 255}, "input_scale has no meaning with scheme codebook"),
    ],
    ids=str,
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"step 1 \(quantise\): {sentence}"):
        check_recipe(Recipe(name="r", steps=(Step(name="quantise", options=options),)))


def test_value_that_16_bits_cannot_hold_is_refused() -> None:
    plain = trained("plain")
    module = copy.deepcopy(plain.state.module)
    module.get_parameter("8.bias").data[0] = 1e6
    with pytest.raises(CellError, match=r"8\.bias has a value of 1e\+06, which fp16 cannot hold"):
        quantise.apply(State(module=module), quantise.Options(scheme="fp16"), plain.context)
    after = quantise.apply(State(module=module), quantise.Options(scheme="bf16"), plain.context)
    assert after.bits["8.bias"] == 16
