"""Optimisers: a recipe's `training.optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from textvae.registry import Registry

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Rate = 1.0,
    momentum: Beta = 0.0,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """Returns stochastic gradient descent."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Rate = 1e-3,
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.999],  # noqa: B006
    eps: Rate = 1e-8,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """Returns Adam (arXiv 1412.6980)."""
    first, second = betas
    return torch.optim.Adam(parameters, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=True)


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Rate = 1e-3,
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.999],  # noqa: B006
    eps: Rate = 1e-8,
    weight_decay: Decay = 0.01,
) -> torch.optim.Optimizer:
    """Returns AdamW (arXiv 1711.05101)."""
    first, second = betas
    return torch.optim.AdamW(parameters, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=True)


OPTIMIZERS = Registry("optimizer", {"sgd": sgd, "adam": adam, "adamw": adamw}, default="adamw")
