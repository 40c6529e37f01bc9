"""Encoders against torch's packed sequences, and padding that changes nothing."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from textvae.nets.encoders import RecurrentEncoder

LENGTHS = torch.tensor([5, 1, 7, 3])


def packed_reference(encoder: RecurrentEncoder, embedded: torch.Tensor, cell: str, layers: int, both: bool):
    """The same weights in one torch module over packed input: (states, lengths)."""
    hidden = encoder.forward_layers[0].hidden_size
    reference = getattr(nn, cell.upper())(embedded.shape[-1], hidden, layers, batch_first=True, bidirectional=both)
    with torch.no_grad():
        for i in range(layers):
            for suffix, stack in (("", encoder.forward_layers), ("_reverse", encoder.backward_layers)):
                if suffix and not both:
                    continue
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(reference, f"{name}_l{i}{suffix}").copy_(getattr(stack[i], f"{name}_l0"))
    packed = pack_padded_sequence(embedded, LENGTHS, batch_first=True, enforce_sorted=False)
    states, final = reference.to(embedded.dtype)(packed)
    return pad_packed_sequence(states, batch_first=True)[0], final[0] if cell == "lstm" else final


@pytest.mark.parametrize(
    ("cell", "layers", "both", "summary"),
    list(itertools.product(["lstm", "gru"], [1, 2], [False, True], ["last", "mean", "max"])),
)
def test_features_equal_those_of_packed_sequences(cell, layers, both, summary):
    torch.manual_seed(0)
    encoder = RecurrentEncoder(6, cell=cell, hidden_dim=5, layers=layers, bidirectional=both, summary=summary).double()
    embedded = torch.randn(4, 7, 6, dtype=torch.float64)
    states, final = packed_reference(encoder, embedded, cell, layers, both)
    if summary == "last":
        expected = torch.cat([final[-2], final[-1]], -1) if both else final[-1]
    else:
        rows = [states[i, :length] for i, length in enumerate(LENGTHS)]
        expected = torch.stack([r.mean(0) if summary == "mean" else r.amax(0) for r in rows])
    torch.testing.assert_close(encoder(embedded, LENGTHS), expected)


@pytest.mark.parametrize("summary", ["last", "mean", "max"])
def test_padding_changes_neither_features_nor_gradients(summary):
    torch.manual_seed(1)
    encoder = RecurrentEncoder(4, hidden_dim=3, layers=2, bidirectional=True, summary=summary).double()
    embedded = torch.randn(2, 5, 4, dtype=torch.float64)
    lengths = torch.tensor([5, 2])

    def run(padding: float, extra: int):
        padded = torch.full((2, 5 + extra, 4), padding, dtype=torch.float64)
        padded[0, :5], padded[1, :2] = embedded[0], embedded[1, :2]
        features = encoder(padded, lengths)
        return features, torch.autograd.grad(features.square().sum(), list(encoder.parameters()))

    features, gradients = run(0.0, 0)
    other_features, other_gradients = run(1e3, 4)
    torch.testing.assert_close(features, other_features)
    torch.testing.assert_close(gradients, other_gradients)
