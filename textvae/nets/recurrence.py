"""One recurrent layer over many draws of z at once, without gradients: what the draws or the steps share is done once.

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
from torch import Tensor, nn

from textvae.nets.products import Product


class Layer(NamedTuple):
    """Weights of one layer of an nn.LSTM or nn.GRU, G gates."""

    lstm: bool
    words: Product  # (G * H, inputs), of what the layer reads; the input's bias, and an LSTM's state's as well
    latent: Product | None  # (G * H, D), of z where it is joined to that
    state: Product  # (G * H, H); a GRU's state's bias, which the candidate's reset gate weighs


def layer_of(rnn: nn.Module, number: int, joined: int, rows: int) -> Layer:
    """Returns the weights of a layer of an nn.LSTM or nn.GRU, so scaled that one sigmoid serves all of its gates.

    tanh(a) = 2 sigmoid(2a) - 1, and torch's tanh costs several times its sigmoid: the rows of the candidate (the third
    quarter of an LSTM's, the third third of a GRU's) are doubled.

    Args:
        rnn: the stack.
        number: of the layer.
        joined: D, the last columns of the input, which read z; 0 where it is not joined.
        rows: of a step at most, or so.
    """
    lstm = isinstance(rnn, nn.LSTM)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(rnn, f"{name}_l{number}").clone() for name in names]
    width = weights[1].shape[1]  # H
    for weight in weights:
        weight[2 * width : 3 * width] *= 2
    of_input, of_state, input_bias, state_bias = weights
    of_words, of_latent = of_input.split([of_input.shape[1] - joined, joined], dim=1)
    words = Product(of_words, input_bias + state_bias if lstm else input_bias, rows=rows)
    latent = Product(of_latent, rows=rows) if joined else None
    return Layer(lstm, words, latent, Product(of_state, None if lstm else state_bias, rows=rows))


def read(
    layer: Layer, below: Tensor, z: Tensor | None, state: Sequence[Tensor], going: Sequence[int], samples: int
) -> Tensor:
    """Reads words or the states of the layer below, step by step.

    Args:
        layer: from `layer_of`.
        below: the words (B, T, E), or the layer below's states as this function returns them.
        z: (B * S, D), joined to every input; None where it is not.
        state: h, or h and c, (B * S, H) each, before the first step.
        going: the sentences that have a step t, for each t: those are the first ones.
        samples: S.

    Returns:
        (sum of going * S, H): step after step, of each the sentences that have it, of each its draws.
    """
    rows = [count * samples for count in going]
    written = state[0].new_empty(sum(rows), state[0].shape[1])
    latent = None if z is None or layer.latent is None else layer.latent(z).unflatten(0, (-1, samples))
    shared = layer.words(below.flatten(0, 1)).unflatten(0, below.shape[:2]) if below.dim() == 3 else None
    begin = 0
    for step, count in enumerate(rows):
        once = None if latent is None else latent[: going[step]]  # (going, S, G * H)
        if shared is None:
            inputs = layer.words(below[begin : begin + count])
            if once is not None:
                inputs += once.flatten(0, 1)
        elif once is None:
            inputs = shared[: going[step], step].repeat_interleave(samples, 0)
        else:
            inputs = (once + shared[: going[step], step, None]).flatten(0, 1)
        out = written[begin : begin + count]
        state = _cell(layer, inputs, [part[:count] for part in state], out)
        begin += count
    return written


def step(layer: Layer, inputs: Tensor, z: Tensor | None, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Takes one step.

    Args:
        layer: from `layer_of`.
        inputs: (R, E), without z.
        z: (R, D), joined to the input; None where it is not.
        state: h, or h and c, (R, H) each.

    Returns:
        The state after it.
    """
    gates = layer.words(inputs)
    if z is not None and layer.latent is not None:
        gates = layer.latent.added(z, gates)
    return _cell(layer, gates, state, torch.empty_like(state[0]))


def _cell(layer: Layer, inputs: Tensor, state: Sequence[Tensor], out: Tensor) -> tuple[Tensor, ...]:
    """From the input product (R, G * H), which is overwritten, and the state to the one after it, its h in `out`."""
    if layer.lstm:
        return _lstm(layer, inputs, state[0], state[1], out)
    return _gru(layer, inputs, state[0], out)


def _lstm(layer: Layer, inputs: Tensor, hidden: Tensor, cell: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    gates = layer.state.added(hidden, inputs).sigmoid_()
    keep_in, forget, candidate, output = gates.chunk(4, dim=1)
    cell = (cell * forget).addcmul_(keep_in, candidate.mul_(2).sub_(1))
    torch.mul(cell, 2, out=out).sigmoid_().mul_(2).sub_(1).mul_(output)
    return out, cell


def _gru(layer: Layer, inputs: Tensor, hidden: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    width = hidden.shape[1]
    of_state = layer.state(hidden)
    reset, update = inputs[:, : 2 * width].add_(of_state[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
    candidate = inputs[:, 2 * width :].addcmul_(reset, of_state[:, 2 * width :]).sigmoid_().mul_(2).sub_(1)
    return (torch.lerp(candidate, hidden, update, out=out),)
