"""What forecasters are built of besides attention: perceptrons of one hidden layer, and tokens that are learned."""

import torch
from torch import nn


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A perceptron of one hidden layer with ReLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def learned(*shape: int, scale: float) -> nn.Parameter:
    """Parameters that begin as normal noise of a standard deviation."""
    return nn.Parameter(torch.randn(*shape) * scale)
