"""An error in a user's code names the user's line, in the task file or in a module beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressors import contract, task
from compressors.training import deterministic
from harness.core.errors import UsageError

IN_FORWARD = """
import torch
from torch import nn
TRAINED = True
METRIC = "accuracy"
class Net(nn.Module):
    def forward(self, x):
        return self.rows(x)
    def rows(self, x):
        try:
            return {}["rows"]
        except KeyError as error:
            raise ValueError("no rows") from error
def model(): return Net()
def example_inputs(): return (torch.zeros(1, 4),)
def validation_loader(): return [(torch.rand(8, 4), torch.zeros(8, dtype=torch.long))]
"""


def require(path: Path) -> None:
    """Load the task and look at all of it, as a build does first."""
    with deterministic(0):
        contract.require_task(task.load(str(path)))


def test_error_in_forward_names_the_line_that_raised_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IN_FORWARD)
    with pytest.raises(UsageError, match=r"mine\.py:13: the model's forward raised ValueError: no rows"):
        require(tmp_path / "mine.py")


def test_error_in_a_module_beside_the_task_names_that_line(tmp_path: Path) -> None:
    before, network = IN_FORWARD.split("class Net")
    network, after = network.split("def model")
    (tmp_path / "rows_net.py").write_text(f"from torch import nn\nclass Net{network}")
    (tmp_path / "mine.py").write_text(f"{before}from rows_net import Net\ndef model{after}")
    with pytest.raises(UsageError, match=r"rows_net\.py:9: the model's forward raised ValueError: no rows"):
        require(tmp_path / "mine.py")
