"""Dropout for recurrent layers: one mask for all steps of a sentence, and masked weights between the steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedDropout(nn.Module):
    """Dropout whose mask is one of a sentence, the same at all of its steps (Gal 2016, arXiv 1512.05287).

    Args:
        rate: the share of units that are dropped, 0 to 1; the others are divided by 1 - rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        """Returns (B, T, H) for states (B, T, H)."""
        if not self.training or not self.rate:
            return states
        mask = states.new_empty(len(states), 1, states.shape[-1]).bernoulli_(1 - self.rate)
        return states * mask.div_(1 - self.rate)


def of_inputs(rate: float, *, shared: bool) -> nn.Module:
    """Returns dropout of what a layer reads: a mask for each step, or one shared by the steps of a sentence."""
    return SharedDropout(rate) if shared else nn.Dropout(rate)


def read_with_dropped_weights(
    rnn: nn.RNNBase, inputs: Tensor, state: tuple[Tensor, ...], rate: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Reads T words with a share of the weights from one step's state to the next at zero.

    One mask a layer serves all sentences and steps of a call: DropConnect on the recurrent weights, after Merity 2018
    (arXiv 1708.02182, section 2).

    Args:
        rnn: an nn.LSTM or nn.GRU, batch first, in training.
        inputs: (B, T, E).
        state: h, or h and c, (layers, B, H) each.
        rate: the share, 0 to 1; the other weights are divided by 1 - rate.

    Returns:
        Hidden states (B, T, H) and the state after the last word.
    """
    weights = [
        F.dropout(weight, rate) if name.startswith("weight_hh") else weight for name, weight in rnn.named_parameters()
    ]
    bias, layers, between = bool(rnn.bias), int(rnn.num_layers), float(rnn.dropout)
    if isinstance(rnn, nn.LSTM):
        hidden, *after = torch.lstm(inputs, state, weights, bias, layers, between, True, False, True)
    else:
        hidden, *after = torch.gru(inputs, state[0], weights, bias, layers, between, True, False, True)
    return hidden, tuple(after)
