"""One recurrent layer without gradients: over many draws of z at once, or a step at a time for many steps.

What the draws or the steps share is done once.

The input of step t is a word, the same for all draws of a sentence, beside z, the same for all steps. So the words'
part of the input product is made once a sentence and z's part once a draw, where nn.LSTM makes both once a draw and
step. Sentences stand from the longest to the shortest, and draws of a sentence side by side: a sentence that has ended
leaves the batch, and the rows that are left are the first ones.

References:
    Hochreiter & Schmidhuber 1997 (Neural Computation 9), Cho 2014, arXiv 1406.1078: the cells, as torch writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textvae.nets.products import Product


class Layer(NamedTuple):
    """Weights of one layer of an nn.LSTM or nn.GRU."""

    lstm: bool
    input: Tensor  # (G * H, inputs), G gates
    state: Tensor  # (G * H, H)
    input_bias: Tensor  # (G * H,)
    state_bias: Tensor  # (G * H,)


def layer_of(rnn: nn.Module, number: int) -> Layer:
    """Returns the weights of a layer of an nn.LSTM or nn.GRU, so scaled that one sigmoid serves all of its gates.

    tanh(a) = 2 sigmoid(2a) - 1, and torch's tanh costs several times its sigmoid: the rows of the candidate (the third
    quarter of an LSTM's, the third third of a GRU's) are doubled.
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(rnn, f"{name}_l{number}").clone() for name in names]
    width = weights[1].shape[1]  # H
    for weight in weights:
        weight[2 * width : 3 * width] *= 2
    return Layer(isinstance(rnn, nn.LSTM), *weights)


def read(
    layer: Layer, below: Tensor, z: Tensor | None, state: Sequence[Tensor], going: Sequence[int], samples: int
) -> Tensor:
    """Reads words or the states of the layer below, step by step.

    Args:
        layer: from `layer_of`.
        below: the words (B, T, E), or the layer below's states as this function returns them.
        z: (B * S, D), joined to every input; None where it is not.
        state: h, or h and c, (B * S, H) each, before the first step; overwritten.
        going: the sentences that have a step t, for each t: those are the first ones.
        samples: S.

    Returns:
        (sum of going * S, H): step after step, of each the sentences that have it, of each its draws.
    """
    rows = [count * samples for count in going]
    hidden, room = state[0], torch.empty(rows[0], len(layer.input), dtype=below.dtype)
    written = torch.empty(sum(rows), hidden.shape[1], dtype=below.dtype)
    words, of_z, bias = _of_input(layer, 0 if z is None else z.shape[1])
    latent = bias.expand(rows[0], -1) if z is None else F.linear(z, of_z, bias)
    latent = latent.unflatten(0, (-1, samples))  # (B, S, G * H)
    shared = F.linear(below, words) if below.dim() == 3 else None  # (B, T, G * H)
    begin = 0
    for step, count in enumerate(rows):
        inputs, once = room[:count], latent[: going[step]]
        of_draws = inputs.unflatten(0, (-1, samples))  # (going, S, G * H)
        if shared is not None:
            torch.add(once, shared[: going[step], step, None], out=of_draws)
        else:
            of_draws.copy_(once)
            inputs.addmm_(below[begin : begin + count], words.T)
        out = written[begin : begin + count]
        before = hidden[:count]
        if layer.lstm:
            _lstm(inputs.addmm_(before, layer.state.T), state[1][:count], out)
        else:
            _gru(inputs, torch.addmm(layer.state_bias, before, layer.state.T), before, out)
        hidden, begin = out, begin + count
    return written


class Step:
    """A layer, a step at a time, with weights that are made ready once.

    Args:
        layer: from `layer_of`.
        joined: D, the last columns of the input, which read z; 0 where it is not joined.
        rows: of a step at most, or so.
    """

    def __init__(self, layer: Layer, joined: int, rows: int) -> None:
        self.lstm = layer.lstm
        words, of_z, bias = _of_input(layer, joined)
        self.words = Product(words, bias, rows=rows)
        self.latent = Product(of_z, rows=rows) if joined else None
        self.state = Product(layer.state, None if layer.lstm else layer.state_bias, rows=rows)

    def __call__(self, inputs: Tensor, z: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the state after a step.

        Args:
            inputs: (R, E), without z.
            z: (R, D).
            state: h, or h and c, (R, H) each.
        """
        gates = self.words(inputs)
        if self.latent is not None:
            gates = self.latent.added(z, gates)
        hidden, out = state[0], torch.empty_like(state[0])
        if not self.lstm:
            _gru(gates, self.state(hidden), hidden, out)
            return (out,)
        cell = state[1].clone()
        _lstm(self.state.added(hidden, gates), cell, out)
        return out, cell


def _of_input(layer: Layer, joined: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of the words and of z, of D dimensions, that is joined to them, and the bias of both."""
    # The state's bias of a GRU's candidate is weighed by its reset gate: it stays with the state's product.
    bias = layer.input_bias + layer.state_bias if layer.lstm else layer.input_bias
    words, of_z = layer.input.split([layer.input.shape[1] - joined, joined], dim=1)
    return words, of_z, bias


def _lstm(gates: Tensor, cell: Tensor, out: Tensor) -> None:
    """From the products of input and state to h in `out`; c and the products are overwritten."""
    keep_in, forget, candidate, output = gates.sigmoid_().chunk(4, dim=1)
    cell.mul_(forget).addcmul_(keep_in, candidate.mul_(2).sub_(1))
    torch.mul(cell, 2, out=out).sigmoid_().mul_(2).sub_(1).mul_(output)


def _gru(inputs: Tensor, of_state: Tensor, hidden: Tensor, out: Tensor) -> None:
    """From the products of input and state and h before to h in `out`; the input's product is overwritten."""
    width = hidden.shape[1]
    reset, update = inputs[:, : 2 * width].add_(of_state[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
    candidate = inputs[:, 2 * width :].addcmul_(reset, of_state[:, 2 * width :]).sigmoid_().mul_(2).sub_(1)
    torch.lerp(candidate, hidden, update, out=out)
