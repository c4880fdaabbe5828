"""A task file: a short one works, every mistake in it is one sentence that says where and what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from compressors import contract, source, task
from compressors.build import BuildRequest, build
from compressors.training import deterministic
from harness.core.errors import UsageError
from harness.core.types import Artifact, Recipe
from tests.compressors.conftest import TINY, ignore

GOOD = """
import torch
from torch import nn
METRIC = "accuracy"
TRAINING = {"epochs": 2, "lr": 0.01}
x, y = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3
loss = nn.functional.cross_entropy
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
def example_inputs():
    return (torch.zeros(1, 4),)
def train_loader(seed):
    return [(x, y)]
def validation_loader():
    return [(x, y)]
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = GOOD
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / "mine.py"
    path.write_text(text)
    return path


def use(path: Path) -> None:
    """Load the task and look at all of it, as a build does first."""
    loaded = task.load(str(path))
    with deterministic(0):
        contract.require_task(loaded)


def test_short_file_is_a_whole_task(tmp_path: Path) -> None:
    """15 lines: METRIC names a metric that ships, so the file needs none of its own."""
    path = write(tmp_path)
    request = BuildRequest(model=str(path), recipe=Recipe(name="fp32"), formats=("onnx",), seed=3)
    artifact = build(request, tmp_path / "cache", ignore)["onnx"]
    assert isinstance(artifact, Artifact)
    assert artifact.model == "mine"
    assert artifact.score is not None
    assert (artifact.score.metric, artifact.score.samples, artifact.score.seeds) == ("accuracy", 80, (3,))


MISTAKES = [
    pytest.param(
        ("import torch\n", "import torch\nraise ValueError('no data')\n"),
        r"mine\.py:3: importing it raised ValueError: no data",
        id="raises on import",
    ),
    pytest.param(
        ("import torch\n", "import torch\nraise SystemExit(3)\n"),
        r"mine\.py:3: importing it raised SystemExit: 3",
        id="exits on import",
    ),
    pytest.param(
        ("import torch\n", "import torch\nreturn 3\n"),
        r"mine\.py:3: importing it raised SyntaxError: 'return' outside function",
        id="does not compile",
    ),
    pytest.param(
        ("import torch\n", "import torch\nimport nonesuch\n"),
        r"mine\.py:3: .*No module named 'nonesuch'",
        id="lacks a package",
    ),
    pytest.param(
        ("def model():", "def model(:"), r"mine\.py:8: the task file is not valid Python", id="syntax"
    ),
    pytest.param(
        ("def model():", "def net():"), r"mine\.py: the task has no function model\(\)", id="no model"
    ),
    pytest.param(
        ("def train_loader(seed):", "def loader(seed):"), r"no function train_loader\(\)", id="no loader"
    ),
    pytest.param(('METRIC = "accuracy"', ""), r"the task has no function metric\(\)", id="no metric"),
    pytest.param(
        ("loss = nn.functional.cross_entropy", "loss = 3"),
        r"loss must be a function, found int",
        id="loss is a number",
    ),
    pytest.param(
        ("    return nn.Sequential(", "    return list("),
        r"mine\.py:9: model\(\) raised TypeError",
        id="model raises",
    ),
    pytest.param(
        ("    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))", "    return 3"),
        r"model\(\) must return a torch\.nn\.Module, found a int",
        id="model is a number",
    ),
    pytest.param(
        ("return (torch.zeros(1, 4),)", "return 4"),
        r"example_inputs\(\) must return a tuple of tensors",
        id="inputs are a number",
    ),
    pytest.param(
        ("return (torch.zeros(1, 4),)", "return torch.zeros(2, 4)"),
        r"example_inputs\(\) must have batch size 1",
        id="batch of 2",
    ),
    pytest.param(
        ("return (torch.zeros(1, 4),)", "return torch.zeros(1, 5)"),
        r"the model's forward raised RuntimeError: mat1 and mat2",
        id="inputs do not fit",
    ),
    pytest.param(
        ("x, y = torch.randn(80, 4", "x, y = torch.randn(80, 5"),
        r"gives samples of float32\[5\], but example_inputs\(\) has float32\[4\]",
        id="samples do not fit",
    ),
    pytest.param(
        ("def validation_loader():\n    return [(x, y)]", "def validation_loader():\n    return []"),
        r"validation_loader\(\) gives no batches",
        id="no batches",
    ),
    pytest.param(
        ("def validation_loader():\n    return [(x, y)]", "def validation_loader():\n    return [x]"),
        r"must give \(inputs, targets\) pairs, found no targets",
        id="no targets",
    ),
    pytest.param(
        ("def validation_loader():\n    return [(x, y)]", "def validation_loader():\n    return 5"),
        r"validation_loader\(\) raised TypeError: 'int' object is not iterable",
        id="loader is a number",
    ),
    pytest.param(
        ("def validation_loader():\n    return [(x, y)]", "def validation_loader():\n    yield x, y[:7]"),
        r"differ in dimension 0: sizes \[7, 80\]",
        id="sizes differ",
    ),
    pytest.param(
        ("def validation_loader():\n    return [(x, y)]", "def validation_loader():\n    yield 1 / 0"),
        r"mine\.py:15: validation_loader\(\) raised ZeroDivisionError",
        id="loader raises",
    ),
    pytest.param(
        ("loss = nn.functional.cross_entropy", "def loss(outputs, targets): return outputs"),
        r"loss\(\) must return a tensor with one number, found shape \[80, 3\]",
        id="loss is a matrix",
    ),
    pytest.param(
        ('METRIC = "accuracy"', "def metric(outputs, targets): return 'good'"),
        r"metric\(\) must return a number, found str",
        id="metric is a text",
    ),
    pytest.param(
        ('TRAINING = {"epochs": 2, "lr": 0.01}', ""), r"says neither TRAINING nor TRAINED", id="no training"
    ),
    pytest.param(
        ('"epochs": 2', '"epoch": 2'),
        r"TRAINING: There is no option 'epoch'\. Did you mean 'epochs'\?",
        id="unknown option",
    ),
    pytest.param(
        ('"lr": 0.01', '"lr": -1'),
        r"TRAINING: lr: input should be greater than 0, found -1",
        id="wrong option",
    ),
    pytest.param(
        ("nn.Linear(8, 3))", "nn.Linear(8, 3), nn.Flatten(0))"),
        r"must give one output per sample in dimension 0",
        id="no batch in outputs",
    ),
]


@pytest.mark.parametrize(
    ("change", "sentence"), [(p.values[0], p.values[1]) for p in MISTAKES], ids=[p.id for p in MISTAKES]
)
def test_mistake_is_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        use(write(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_mistake_in_training_names_the_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (
            "def train_loader(seed):\n    return [(x, y)]",
            "def train_loader(seed):\n    yield x, y\n    open('gone')",
        ),
    )
    request = BuildRequest(model=str(path), recipe=Recipe(name="fp32"), formats=("onnx",), seed=0)
    with pytest.raises(UsageError, match=r"mine\.py:14: train_loader\(\) raised FileNotFoundError: .*gone"):
        build(request, tmp_path / "cache", ignore)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("float('nan')", r"mine\.py: metric\(\) must return a finite number, found nan\."),
        ("torch.tensor(float('inf'))", r"mine\.py: metric\(\) must return a finite number, found inf\."),
        ("float('nan') if len(targets) > 80 else 1", r"mine\.py: metric\(\) .* finite number, found nan\."),
        ("[1]", r"mine\.py: metric\(\) must return a number, found list\."),
        ("1j", r"mine\.py: metric\(\) must return a number, found complex\."),
        ("None if len(targets) > 80 else 1", r"mine\.py: metric\(\) must return a number, found NoneType\."),
        (
            "outputs[:, 0]",
            r"mine\.py: metric\(\) must return a number, found Tensor of shape \[80\]\.",
        ),
    ],
)
def test_metric_that_gives_no_finite_number_is_one_sentence(
    tmp_path: Path, returned: str, sentence: str
) -> None:
    """Also where it does so only for the whole test split."""
    metric = f"def metric(outputs, targets): return {returned}\ndef test_loader(): return [(x, y), (x, y)]"
    path = write(tmp_path, ('METRIC = "accuracy"', metric))
    request = BuildRequest(model=str(path), recipe=Recipe(name="fp32"), formats=("onnx",), seed=0)
    with pytest.raises(UsageError, match=sentence) as caught:
        build(request, tmp_path / "cache", ignore)
    assert "\n" not in str(caught.value)


def test_metric_may_return_a_number_of_any_library(tmp_path: Path) -> None:
    returned = "def metric(outputs, targets): return outputs.numpy().std()  # a numpy.float32"
    use(write(tmp_path, ('METRIC = "accuracy"', returned)))


def test_unknown_names_say_what_was_likely_meant() -> None:
    with pytest.raises(UsageError, match=r"no model 'digits_cn'\. Did you mean 'digits_cnn'"):
        source.locate("digits_cn")
    with pytest.raises(UsageError, match=r"task file gone/mine\.py does not exist"):
        source.locate("gone/mine.py")


def test_digest_follows_siblings_and_named_files_and_nothing_else(tmp_path: Path) -> None:
    """A task is its source, the modules beside it that it imports, and the files its strings name."""
    path = write(tmp_path, ("import torch\n", "import torch\nimport layers\nWEIGHTS = 'weights.bin'\n"))
    (tmp_path / "layers.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "weights.bin").write_bytes(b"1")
    digests = [source.task_digest(path)]
    for name, changes in (
        ("layers.py", True),
        ("deeper.py", True),
        ("weights.bin", True),
        ("other.py", False),
    ):
        with (tmp_path / name).open("a") as file:
            file.write("# 2")
        digests.append(source.task_digest(path))
        assert (digests[-1] != digests[-2]) is changes, name


def test_digest_follows_relative_imports(tmp_path: Path) -> None:
    """In whatever folder the importing module lies, and also through a package's __init__."""
    path = write(tmp_path, ("import torch\n", "import torch\nfrom net import Net\nimport top\n"))
    files = {
        "net/__init__.py": "from .layers import Net\n",
        "net/layers.py": "from . import blocks\nfrom .deep.inner import *\n",
        "net/blocks.py": "import top\n",
        "net/deep/__init__.py": "",
        "net/deep/inner.py": "from ..shared import SIZE\nWEIGHTS = 'inner.bin'\n",
        "net/deep/inner.bin": "",
        "net/shared.py": "SIZE = 3\n",
        "top.py": "",
    }
    unused = {"net/unused.py": "", "layers.py": "", "blocks.py": "", "shared.py": ""}
    for name, text in {**files, **unused}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    digests = [source.task_digest(path)]
    for name in (*files, *unused):
        with (tmp_path / name).open("a") as file:
            file.write("# 2")
        digests.append(source.task_digest(path))
        assert (digests[-1] != digests[-2]) is (name in files), name


def test_digest_tells_files_of_one_name_in_two_folders_apart(tmp_path: Path) -> None:
    path = write(tmp_path, ("import torch\n", "import torch\nFILES = 'a/w.bin', 'b/w.bin'\n"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.bin").write_bytes(b"1")
    digests = {source.task_digest(path)}
    for folder in ("a", "b"):
        (tmp_path / folder / "w.bin").write_bytes(folder.encode())
        digests.add(source.task_digest(path))
    assert len(digests) == 3


def test_task_that_moves_with_its_files_is_the_same_task(tmp_path: Path) -> None:
    path = write(tmp_path, ("import torch\n", "import torch, net.layers\nWEIGHTS = 'w.bin'\n"))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "layers.py").write_text("from . import blocks\n")
    (tmp_path / "net" / "blocks.py").write_text("")
    (tmp_path / "w.bin").write_bytes(b"1")
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert source.task_digest(tmp_path / "moved" / path.name) == source.task_digest(path)


def test_two_tasks_may_have_modules_of_the_same_name(tmp_path: Path) -> None:
    for size in (8, 9):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "layers.py").write_text(f"size = {size}\n")
        path = write(
            folder,
            ("import torch\n", "import torch, layers\n"),
            ("(4, 8)", "(4, layers.size)"),
            ("(8, 3)", "(layers.size, 3)"),
        )
        assert task.load(str(path)).model()[0].out_features == size  # type: ignore[index]


def test_latency_task_needs_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom torch import nn\nLATENCY_ONLY = 'random weights'\n"
        "def model(): return nn.Linear(4, 3)\n"
        "def example_inputs(): return (torch.zeros(1, 4),)\n"
        "def validation_loader(): return [torch.rand(70, 4)]\n"
    )
    request = BuildRequest(model=str(path), recipe=Recipe(name="fp32"), formats=("onnx",), seed=0)
    artifact = build(request, tmp_path / "cache", ignore)["onnx"]
    assert isinstance(artifact, Artifact)
    assert (artifact.score, artifact.score_reason) == (None, "random weights")
    assert artifact.parity is not None
    assert artifact.parity.samples == 70


def test_model_with_two_inputs_and_two_outputs(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom torch import nn\nLATENCY_ONLY = 'random weights'\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 3)\n"
        "    def forward(self, first, second):\n"
        "        return self.layer(first) - second, second * 2\n"
        "def model(): return Two()\n"
        "def example_inputs(): return torch.zeros(1, 4), torch.zeros(1, 3)\n"
        "def validation_loader(): return [((torch.rand(64, 4), torch.rand(64, 3)),)]\n"
    )
    request = BuildRequest(
        model=str(path), recipe=Recipe(name="fp32"), formats=("executorch", "onnx", "tflite"), seed=0
    )
    for artifact in build(request, tmp_path / "cache", ignore).values():
        assert isinstance(artifact, Artifact), artifact
        assert [spec.shape for spec in artifact.inputs] == [(1, 4), (1, 3)]
        assert [spec.shape for spec in artifact.outputs] == [(1, 3), (1, 3)]


def test_training_is_the_same_for_a_seed_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / "tiny_task.py")
    loaded = task.load(str(tmp_path / "tiny_task.py"))
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        with deterministic(seed):
            assert torch.get_num_threads() == 1
            weights.append(torch.cat([p.flatten() for p in loaded.model().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
