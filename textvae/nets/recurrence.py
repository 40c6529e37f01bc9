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
    # The state's bias of a GRU's candidate is weighed by its reset gate: it stays with the state's product.
    bias = layer.input_bias + layer.state_bias if layer.lstm else layer.input_bias
    words, latent = layer.input, bias.expand(rows[0], -1)
    if z is not None:
        words, of_z = layer.input.split([layer.input.shape[1] - z.shape[1], z.shape[1]], dim=1)
        latent = F.linear(z, of_z, bias)
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
        if layer.lstm:
            _lstm(layer, inputs, hidden[:count], state[1][:count], out)
        else:
            _gru(layer, inputs, hidden[:count], out)
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
        # The state's bias of a GRU's candidate is weighed by its reset gate: it stays with the state's product.
        bias = layer.input_bias + layer.state_bias if layer.lstm else layer.input_bias
        of_words, of_latent = layer.input.split([layer.input.shape[1] - joined, joined], dim=1)
        self.words = Product(of_words, bias, rows=rows)
        self.latent = Product(of_latent, rows=rows) if joined else None
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
        return self._lstm(gates, *state) if self.lstm else self._gru(gates, *state)

    def _lstm(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        gates = self.state.added(hidden, inputs).sigmoid_()
        keep_in, forget, candidate, output = gates.chunk(4, dim=1)
        cell = (cell * forget).addcmul_(keep_in, candidate.mul_(2).sub_(1))
        return (cell * 2).sigmoid_().mul_(2).sub_(1).mul_(output), cell

    def _gru(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        width, of_state = hidden.shape[1], self.state(hidden)
        reset, update = inputs[:, : 2 * width].add_(of_state[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
        candidate = inputs[:, 2 * width :].addcmul_(reset, of_state[:, 2 * width :]).sigmoid_().mul_(2).sub_(1)
        return (torch.lerp(candidate, hidden, update),)


def _lstm(layer: Layer, gates: Tensor, hidden: Tensor, cell: Tensor, out: Tensor) -> None:
    """From the input product and h before to h in `out`; c is overwritten, the gates too."""
    gates.addmm_(hidden, layer.state.T).sigmoid_()
    keep_in, forget, candidate, output = gates.chunk(4, dim=1)
    cell.mul_(forget).addcmul_(keep_in, candidate.mul_(2).sub_(1))
    torch.mul(cell, 2, out=out).sigmoid_().mul_(2).sub_(1).mul_(output)


def _gru(layer: Layer, inputs: Tensor, hidden: Tensor, out: Tensor) -> None:
    """From the input product and h before to h in `out`; the input product is overwritten."""
    width = hidden.shape[1]
    of_state = torch.addmm(layer.state_bias, hidden, layer.state.T)
    reset, update = inputs[:, : 2 * width].add_(of_state[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
    candidate = inputs[:, 2 * width :].addcmul_(reset, of_state[:, 2 * width :]).sigmoid_().mul_(2).sub_(1)
    torch.lerp(candidate, hidden, update, out=out)
