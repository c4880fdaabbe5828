"""Real tabular data: scikit-learn's breast-cancer set (569 patients, 30 measurements) and an MLP."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

METRIC = "accuracy"
TRAINING = {"epochs": 8, "lr": 0.005, "weight_decay": 0.01}

data = load_breast_cancer()
order = torch.randperm(569, generator=torch.Generator().manual_seed(0))
x = torch.tensor(data.data, dtype=torch.float32)[order]
x = (x - x[:369].mean(0)) / x[:369].std(0)
y = torch.tensor(data.target)[order]
loss = nn.functional.cross_entropy


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, 2),
    )


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 30),)


def train_loader(seed: int) -> list[tuple[Tensor, Tensor]]:
    shuffled = torch.randperm(369, generator=torch.Generator().manual_seed(seed))
    return [(x[part], y[part]) for part in torch.split(shuffled, 41)]


def validation_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[369:469], y[369:469])]


def test_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[469:], y[469:])]
