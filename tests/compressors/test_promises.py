"""What the contract keeps between passes: zeros, shared values, size; and what it stores."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressors import constraints, contract, counting, memory, order, score, stored, training
from compressors.constraints import Constraint
from compressors.options import FineTuning, Training
from compressors.state import State
from compressors.training import Hooks, tidy
from harness.core import errors, plugins
from harness.core.errors import CellError, UsageError
from harness.core.types import Recipe, Step
from tests.compressors.conftest import ignore
from tests.compressors.models import MODELS, require_same, round_trip, run_pass, trained

OPTIMISERS = [
    {"optimiser": "sgd", "lr": 0.05},
    {"optimiser": "adam", "weight_decay": 0.1},
    {"optimiser": "adamw", "channels_last": True},
]


def pair() -> Any:
    module: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    module[0].weight.data = torch.tensor([[1.0, 2], [2, 0]])
    module[1].weight.data = torch.tensor([[2.0, 5]])
    return module


SHARED = {
    "0.weight": Constraint(
        zeros=torch.tensor([[False, False], [False, True]]), shared=torch.tensor([[0, 1], [1, 1]]), book="b"
    ),
    "1.weight": Constraint(shared=torch.tensor([[1, -1]]), book="b"),
}


def test_gradient_of_a_shared_value_is_the_sum_of_its_members() -> None:
    """F08, across two layers of one book; the promised zero is a member of nothing."""
    module = pair()
    module[0].weight.grad = torch.tensor([[1.0, 10], [100, 7]])
    module[1].weight.grad = torch.tensor([[1000.0, 3]])
    constraints.gather_gradients(module, SHARED)
    assert module[0].weight.grad.tolist() == [[1, 1110], [1110, 0]]
    assert module[1].weight.grad.tolist() == [[1110, 3]]


def test_projection_makes_promises_true_and_broken_tells_which_are_not() -> None:
    module = pair()
    assert constraints.broken(module, SHARED) is None
    with torch.no_grad():
        module[0].weight[1, 1] = 0.5
    assert "1 of the 1 zeros of 0.weight" in str(constraints.broken(module, SHARED))
    with torch.no_grad():
        module[0].weight[1] = torch.tensor([3.0, 0.0])
    assert "1 of the shared values of 0.weight, 1.weight" in str(constraints.broken(module, SHARED))
    constraints.project(module, SHARED)
    assert constraints.broken(module, SHARED) is None
    assert module[1].weight.tolist() == [[2, 5]]


@pytest.mark.parametrize("options", OPTIMISERS, ids=lambda o: str(o["optimiser"]))
def test_training_a_codebook_is_training_its_centroids(options: dict[str, Any]) -> None:
    """The same as a model whose parameters are the centroids, step for step."""
    plain = trained("plain")
    weight = plain.state.module.get_parameter("6.weight")
    shared = (weight * 8).round().long() - int((weight * 8).round().min())
    centroids = torch.zeros(int(shared.max()) + 1).scatter_reduce_(
        0, shared.flatten(), weight.flatten(), "mean", include_self=False
    )

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(plain.state.module)
            del self.inner.get_submodule("6").weight
            self.centroids = nn.Parameter(centroids.clone())

        def forward(self, x: Tensor) -> Tensor:
            self.inner.get_submodule("6").weight = self.centroids[shared]
            result: Tensor = self.inner(x)
            return result

    module = copy.deepcopy(plain.state.module)
    module.get_parameter("6.weight").data = centroids[shared]
    options = {"epochs": 1, "schedule": "constant", **options, "channels_last": False}
    common: dict[str, Any] = {"seed": 0, "stage": "t", "report": ignore}
    chosen = Training.model_validate(options)
    kept = {"6.weight": Constraint(shared=shared)}
    one: Any = training.fit(module, plain.task, chosen, constraints=kept, **common)
    two = _fit_centroids(Shared(), plain.task, chosen)
    assert constraints.broken(one, kept) is None
    assert torch.allclose(one.get_parameter("6.weight"), two.centroids[shared], atol=2e-4)
    assert not torch.allclose(one.get_parameter("6.weight"), centroids[shared], atol=1e-2)


def _fit_centroids(module: Any, task: Any, chosen: Training) -> Any:
    with training.deterministic(0):
        loader = task.train_loader(0)
        optimiser, _ = training._optimiser(module.requires_grad_(True), chosen, len(loader))
        for inputs, targets in loader:
            optimiser.zero_grad()
            task.loss(module.train()(inputs), targets).backward()
            optimiser.step()
    return module


@pytest.mark.parametrize("options", OPTIMISERS, ids=lambda o: str(o["optimiser"]))
def test_zeros_and_values_survive_every_optimiser(options: dict[str, Any]) -> None:
    plain = trained("plain")
    weight = plain.state.module.get_parameter("2.weight")
    promise = Constraint(zeros=weight.abs() < weight.abs().median(), shared=(weight > 0).long())
    module = copy.deepcopy(plain.state.module)
    constraints.project(module, {"2.weight": promise})
    state = plain.state.replaced(module, constraints={"2.weight": promise})
    after, report = run_pass("finetune", {"epochs": 2, **options}, plain, after=state)
    assert len(set(after.module.get_parameter("2.weight").flatten().tolist())) == 3
    assert report.changed


def test_promises_are_merged_cut_and_kept() -> None:
    module = pair()
    more = {"0.weight": Constraint(zeros=torch.tensor([[True, False], [False, False]]))}
    found = constraints.merged(SHARED, more)["0.weight"]
    assert found.zeros is not None
    assert found.zeros.tolist() == [[True, False], [False, True]]
    assert found.shared is not None
    module[0] = nn.Linear(2, 1, bias=False)
    module[0].weight.data = torch.tensor([[2.0, 0]])
    cut, lost = constraints.sliced(SHARED, module)
    assert lost == []
    assert constraints.broken(module, cut) is None
    assert cut["0.weight"].zeros is not None
    assert cut["0.weight"].zeros.tolist() == [[False, True]]
    fitting, lost = constraints.kept(SHARED, module)
    assert list(fitting) == ["1.weight"]
    assert lost == ["0.weight"]


GONE = {"2.weight": "wrapped"}


def breaking(after: Any) -> Any:
    """A pass that does *after* to its state."""
    return type("Pass", (), {"apply": staticmethod(lambda state, options, context: after(state))})


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (lambda s: s.replaced(s.module, constraints={}), r"does not keep the zeros .* 2\.weight"),
        (lambda s: s.replaced(_with(s, lambda m: m[2].weight.add_(1))), r"zeros of 2\.weight are not zero"),
        (lambda s: s.replaced(_with(s, lambda m: m[2].weight.mul_(torch.nan))), "not finite"),
        (lambda s: s.replaced(nn.Sequential(s.module, nn.Linear(10, 9))), r"gives float32\[1, 9\] and not"),
        (
            lambda s: s.replaced(nn.Sequential(s.module, nn.Linear(10, 10)), constraints={}, dropped=GONE),
            r"bigger or slower: parameters from 6,090 to 6,200, bytes from .* multiply-accumulates from",
        ),
    ],
    ids=["lost", "broken", "nan", "shape", "growth"],
)
def test_pass_that_breaks_the_contract_is_refused(
    monkeypatch: pytest.MonkeyPatch, after: Any, sentence: str
) -> None:
    """The sentence names the step and those before it."""
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"include": ["2"], "finetune": {"epochs": 0}}, plain)
    real = plugins.load
    fake = breaking(lambda state: _tidied(after(state)))
    fake.Options = real("compressors.passes", "finetune").Options
    monkeypatch.setattr(plugins, "load", lambda p, n: fake if n == "finetune" else real(p, n))
    with pytest.raises(CellError, match=rf"finetune \(after train\).*{sentence}"):
        run_pass("finetune", {}, plain, after=pruned)


def _tidied(state: State) -> State:
    return dataclasses.replace(state, module=tidy(state.module))


def _with(state: State, change: Any) -> nn.Module:
    module = copy.deepcopy(state.module)
    with torch.no_grad():
        change(module)
    return module


def test_growth_is_accepted_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained("plain")
    real = plugins.load
    fake = breaking(lambda s: s.replaced(tidy(nn.Sequential(copy.deepcopy(s.module), nn.Linear(10, 10)))))
    fake.Options = real("compressors.passes", "finetune").Options
    monkeypatch.setattr(plugins, "load", lambda p, n: fake if n == "finetune" else real(p, n))
    _, report = run_pass("finetune", {"allow_growth": True}, plain)
    assert report.parameters == 6200


def test_step_says_what_it_did_layer_by_layer() -> None:
    plain = trained("plain")
    _, report = run_pass("prune_weights", {"include": ["6"], "finetune": {"epochs": 0}}, plain)
    (change,) = report.layers
    assert (change.name, change.kind) == ("6", "Linear")
    assert change.shape_before == change.shape_after == (48, 64)
    assert change.parameters == 48 * 64 + 48
    assert change.nonzeros == 48 * 64 // 2 + 48
    assert change.sqnr_db is not None
    assert 3 < change.sqnr_db < 30
    assert report.metrics["accuracy"] == report.score
    assert 0 < report.metrics["f1"] <= 1
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_method == memory.METHOD
    _, same = run_pass("prune_weights", {"threshold": 1e-9, "finetune": {"epochs": 0}}, plain)
    assert same.note.endswith("changed nothing")
    assert same.layers == ()


def test_bytes_are_those_of_the_bits_that_are_needed() -> None:
    plain = trained("plain")
    assert counting.size(plain.state)[0] == 4 * plain.report.parameters
    weights = {n: p.numel() for n, p in plain.state.module.named_parameters() if n.endswith("weight")}
    _, report = run_pass("quantise", {"calibration": 32}, plain)
    biases = plain.report.parameters - sum(weights.values())
    assert report.bytes == sum(weights.values()) + 4 * biases + 4 * (16 + 16 + 48 + 10)  # scales
    assert report.gzip_bytes is not None
    assert {change.kind for change in report.layers} == {"Conv2d int8", "Linear int8"}
    assert all(change.sqnr_db is not None and change.sqnr_db > 30 for change in report.layers)
    module = copy.deepcopy(plain.state.module)
    module.get_parameter("6.weight").data.sign_()
    palette = plain.state.replaced(module, bits={"6.weight": 1})
    rest = 4 * (plain.report.parameters - 48 * 64)
    assert counting.size(palette)[0] == rest + 48 * 64 // 8 + 2 * 4  # and a palette of two


def test_sqnr_is_worked_by_hand() -> None:
    """Signal 25, noise 0.25: 20 dB."""
    assert counting.sqnr_db(torch.tensor([3.0, 4]), torch.tensor([3.0, 4.5])) == 20.0
    assert counting.sqnr_db(torch.zeros(2), torch.ones(2)) is None


def test_f1_and_recall_are_means_over_the_classes() -> None:
    """Targets 0 0 1 2, answers 0 1 1 1: recalls 1/2, 1, 0; F1 2/3, 1/2, 0; class 3 is never seen."""
    logits = torch.eye(4)[[0, 1, 1, 1]]
    found = score.classification(logits, torch.tensor([0, 0, 1, 2]))
    assert found == pytest.approx({"accuracy": 0.5, "recall": 0.5, "f1": (2 / 3 + 1 / 2 + 0) / 3})


@pytest.mark.parametrize("name", MODELS)
def test_replaced_and_tied_layers_come_back_from_the_cache(name: str) -> None:
    model = trained(name)
    module = copy.deepcopy(model.state.module)
    linear = [n for n, layer in module.named_modules() if type(layer) is nn.Linear][-1]
    parent, _, last = linear.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Sequential(module.get_submodule(linear), nn.Identity()))
    state = State(module=tidy(module), bits={f"{linear}.0.weight": 4})
    require_same(state, round_trip(state, model), model)


def test_tied_weights_stay_tied() -> None:
    plain = trained("plain")
    module: Any = copy.deepcopy(plain.state.module)
    module.append(nn.Linear(10, 10))
    module.append(nn.Linear(10, 10))
    module[10].weight = module[9].weight
    found: Any = round_trip(State(module=tidy(module)), plain).module
    assert found[10].weight is found[9].weight


class Rogue(nn.Module):
    """A module whose pickle runs a command."""

    def __reduce__(self) -> Any:
        return (print, ("owned",))


def test_cache_brings_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = trained("plain")
    torch.save(Rogue(), tmp_path / "module.pt")
    stored.save(tmp_path, plain.state, plain.task, 0)
    torch.save({"probe": [], "constraints": {}, "bits": {}, "scheme": None}, tmp_path / "state.pt")
    from compressors import cache

    digests = {name: cache.sha256(tmp_path / name) for name in ("module.pt", "state.pt")}
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    assert stored.load(tmp_path, plain.task, 0) is None
    assert capsys.readouterr().out == ""


def test_class_made_inside_a_function_cannot_be_stored_and_is_told(tmp_path: Path) -> None:
    class Inner(nn.Linear):
        pass

    plain = trained("plain")
    state = State(module=tidy(nn.Sequential(plain.state.module, Inner(10, 10))))
    with pytest.raises(stored.CannotStore, match="cannot be stored"):
        stored.save(tmp_path, state, plain.task, 0)


def test_order_is_decided_from_what_passes_declare() -> None:
    recipe = Recipe(name="r", steps=(Step(name="quantise"), Step(name="prune_weights")))
    with pytest.raises(UsageError, match=r"r: step 2 \(prune_weights\) needs float weights, but step 1"):
        order.require(recipe, "r")
    for name in plugins.names(order.PASSES):
        assert set(order.traits(name, "NEEDS") + order.traits(name, "BREAKS")) <= order.START


def test_early_stopping_keeps_the_best_and_never_looks_at_the_test_split() -> None:
    plain = trained("plain")
    events: list[Any] = []
    options = FineTuning(epochs=30, patience=2, lr=0.05, optimiser="sgd", schedule="constant")
    module = training.fit(plain.state.module, plain.task, options, seed=0, stage="t", report=events.append)
    assert len(events) < 30
    assert events[-1].done == events[-1].total
    best = max(float(e.note.split("validation ")[1].split(",")[0]) for e in events)
    assert score.of_validation(module, plain.task) == pytest.approx(best, abs=1e-4)
    without = dataclasses.replace(plain.task, has_test_split=False)
    with pytest.raises(UsageError, match=r"t: patience: the task plain_task has no test_loader\(\)"):
        training.fit(plain.state.module, without, options, seed=0, stage="t", report=ignore)


def test_batches_are_joined_and_split_to_the_size_asked_for() -> None:
    plain = trained("plain")
    assert plain.task.train_loader is not None
    for size, wanted in ((50, [50] * 24), (32, [32] * 37 + [16]), (1000, [1000, 200])):
        loader = training._Rebatched(plain.task, plain.task.train_loader(0), size)
        assert [len(targets) for _, targets in loader] == wanted
        assert loader.count() == len(wanted)
        joined = torch.cat([targets for _, targets in loader])
        assert torch.equal(joined, torch.cat([t for _, t in plain.task.train_loader(0)]))


def test_step_schedule_falls_every_few_epochs() -> None:
    plain = trained("plain")
    rates: list[float] = []
    training.fit(
        plain.state.module,
        plain.task,
        Training(epochs=4, lr=0.1, optimiser="sgd", schedule="step", step_epochs=2, step_factor=0.1),
        seed=0,
        stage="t",
        report=ignore,
        hooks=Hooks(after_step=lambda module, rate: rates.append(rate)),
    )
    assert rates[:: len(rates) // 4] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_regulariser_is_part_of_the_loss() -> None:
    """An L2 pull that is far stronger than the loss shrinks all weights."""
    plain = trained("plain")

    def pull(module: nn.Module) -> Tensor:
        return 10 * torch.stack([p.square().sum() for p in module.parameters()]).sum()

    options = Training(epochs=1, lr=0.01, weight_decay=0)
    module = training.fit(
        plain.state.module,
        plain.task,
        options,
        seed=0,
        stage="t",
        report=ignore,
        hooks=Hooks(regulariser=pull),
    )
    assert float(pull(module)) < 0.5 * float(pull(plain.state.module))


def test_not_applicable_is_a_type_of_its_own() -> None:
    assert errors.NotApplicable("x").status == "build_failed"
    assert contract.changed is not None
