"""How parameters start: a recipe's `model.initialization`."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from textvae.registry import Registry


class Default:
    """Leaves torch's own initialisation, with embeddings from N(0, scale^2).

    Args:
        embedding_scale: standard deviation of the embeddings.
        forget_bias: added to each LSTM's forget gate, so that it remembers from the start
            (Jozefowicz 2015, section 3).
    """

    def __init__(self, *, embedding_scale: Annotated[float, Field(gt=0)] = 0.1, forget_bias: float = 1.0) -> None:
        self.embedding_scale = embedding_scale
        self.forget_bias = forget_bias

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Sets the parameters of `model` in place."""
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, self.embedding_scale)
            elif isinstance(module, nn.LSTM):
                for name, bias in module.named_parameters():
                    if name.startswith("bias_ih"):
                        bias[module.hidden_size : 2 * module.hidden_size] += self.forget_bias


class Uniform:
    """U(-scale, scale) for every parameter and U(-embedding_scale, embedding_scale) for embeddings.

    The defaults are He 2019's (arXiv 1901.05534, and its published code).
    """

    def __init__(
        self,
        *,
        scale: Annotated[float, Field(gt=0)] = 0.01,
        embedding_scale: Annotated[float, Field(gt=0)] = 0.1,
    ) -> None:
        self.scale = scale
        self.embedding_scale = embedding_scale

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Sets the parameters of `model` in place."""
        for parameter in model.parameters():
            parameter.uniform_(-self.scale, self.scale)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.uniform_(-self.embedding_scale, self.embedding_scale)


INITIALIZATIONS = Registry("initialization", {"default": Default, "uniform": Uniform}, default="default")
