"""Breast cancer, benign or not: a small MLP on 30 real measurements of each of 569 tumours."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

METRIC = "accuracy"
TRAINING = {"epochs": 20, "lr": 0.01}

data = load_breast_cancer()
order = torch.randperm(569, generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(data.data, dtype=torch.float32)[order], torch.tensor(data.target)[order]
x = (x - x[:400].mean(0)) / x[:400].std(0)

def model():
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))

def example_inputs():
    return (x[:1],)

def train_loader(seed):
    shuffle = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x[:400], y[:400]), batch_size=32, shuffle=True, generator=shuffle)

def validation_loader():
    return [(x[400:], y[400:])]

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)

def metric(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean().item()
