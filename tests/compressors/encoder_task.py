"""Digits at 8x8 and a small transformer encoder (a ViT built from a config, nothing is downloaded)."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

METRIC = "accuracy"
TRAINING = {"epochs": 8, "lr": 0.003, "weight_decay": 0.01}

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
loss = nn.functional.cross_entropy


class Encoder(nn.Module):
    """16 patches of 2x2 through two blocks with four heads."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
        self.vit = ViTForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.vit(x).logits
        return logits


def model() -> nn.Module:
    return Encoder()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 1, 8, 8),)


def train_loader(seed: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(seed))
    return [(x[part], y[part]) for part in torch.split(order, 32)]


def validation_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1200:1500], y[1200:1500])]


def test_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1500:], y[1500:])]
