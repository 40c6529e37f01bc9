"""What is exported, as modules of tensors in and tensors out: encoder, decoder start, decoder step."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textvae.latent.vmf import VonMisesFisher
from textvae.model import SequenceVAE, State
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.encoders import RecurrentEncoder
from textvae.types import Batch

# Gates as ONNX orders them, by their places in torch's order: GRU (r z n -> z r n), LSTM (i f g o -> i o f g).
ONNX_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


class Encoder(nn.Module):
    """Sentences to their posterior means and scales.

    Args:
        model: gives the layers; in `.eval()`.
    """

    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.model = _only(model, "encoder_embedding", "encoder", "posterior", "noise")

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation, (B, D) float32 each; on a sphere the mode for the mean.

        Args:
            tokens: (B, T+1) int64, <s> w1 .. wn </s> <pad> .. as the tokenizer gives them.
            lengths: (B,) int64, tokens a row without <s> and <pad>.
        """
        posterior = self.model.encode(Batch(tokens, lengths))
        centre = posterior.mode if isinstance(posterior, VonMisesFisher) else posterior.mean
        return centre.float(), posterior.stddev.float().expand_as(centre)


class Start(nn.Module):
    """Latents to the decoder's state before the first word."""

    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.model = _only(model, "decoder")

    def forward(self, z: Tensor) -> State:
        """Returns the state, each tensor (layers, B, H), for z (B, D)."""
        return self.model.start(z)


class Step(nn.Module):
    """One word read, the next one's logits given."""

    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.model = _only(model, "decoder_embedding", "decoder", "output")

    def forward(self, tokens: Tensor, z: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns logits (B, V) and the state after tokens (B,), for z (B, D) and a state, (layers, B, H) each."""
        logits, after = self.model.step(tokens, z, state)
        return (logits, *after)


class Whole(nn.Module):
    """Encoder, start and step side by side, to be traced at once and then taken apart."""

    def __init__(self, model: SequenceVAE) -> None:
        super().__init__()
        self.encoder, self.start, self.step = Encoder(model), Start(model), Step(model)

    def forward(
        self, tokens: Tensor, lengths: Tensor, first: Tensor, z: Tensor, word: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns what `Encoder`, `Start` (of first) and `Step` return, one after the other."""
        return (*self.encoder(tokens, lengths), *self.start(first), *self.step(word, z, *state))


def _only(model: SequenceVAE, *parts: str) -> SequenceVAE:
    """The same model with some of its parts alone: what is not there is not written."""
    reduced = copy.copy(model)
    reduced._modules = {name: module if name in parts else None for name, module in model._modules.items()}
    return reduced


def separate(model: SequenceVAE) -> SequenceVAE:
    """Returns a copy on the CPU in evaluation mode: tracing a module leaves its own things in it."""
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def for_onnx(model: SequenceVAE) -> SequenceVAE:
    """Returns a copy whose recurrences are written so that ONNX has them whole.

    The encoder's become ONNX's operators, which read sentences of any length; the decoder's steps become matrix
    products, which can also be quantised. A user's own encoder or decoder stays as it is.
    """
    model = separate(model)
    if isinstance(model.encoder, RecurrentEncoder):
        for layers in (model.encoder.forward_layers, model.encoder.backward_layers):
            for i, layer in enumerate(layers):
                layers[i] = OnnxLayer(layer)
    decoder = model.decoder  # of any type
    if isinstance(model.decoder, RecurrentDecoder):
        decoder.rnn = StepLayers(decoder.rnn)
        for i, layer in enumerate(decoder.upper):
            decoder.upper[i] = StepLayers(layer)
    return model


class OnnxLayer(nn.Module):
    """A layer of an encoder in one direction, as ONNX's operator GRU or LSTM; it can be traced, not run.

    Args:
        rnn: an nn.GRU or nn.LSTM of one layer and direction, batch first.
    """

    weight: Tensor
    recurrence: Tensor
    bias: Tensor

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.kind: str = rnn.mode
        self.hidden_dim: int = rnn.hidden_size
        biases = [self._ordered(rnn.bias_ih_l0), self._ordered(rnn.bias_hh_l0)]
        self.register_buffer("weight", self._ordered(rnn.weight_ih_l0)[None])  # (1, G*H, E)
        self.register_buffer("recurrence", self._ordered(rnn.weight_hh_l0)[None])  # (1, G*H, H)
        self.register_buffer("bias", torch.cat(biases)[None])  # (1, 2*G*H)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Returns states (B, T, H) of inputs (B, T, E), from a state of zeros."""
        rows = inputs.transpose(0, 1)  # (T, B, E)
        states = torch.onnx.ops.symbolic(
            self.kind,
            (rows, self.weight, self.recurrence, self.bias),
            # torch resets the hidden state after its matrix product; ONNX's other form does before.
            {"hidden_size": self.hidden_dim, **({"linear_before_reset": 1} if self.kind == "GRU" else {})},
            dtype=inputs.dtype,
            shape=(rows.shape[0], 1, rows.shape[1], self.hidden_dim),
        )
        return states.squeeze(1).transpose(0, 1), None

    def _ordered(self, weight: Tensor) -> Tensor:
        gates = weight.detach().unflatten(0, (-1, self.hidden_dim))
        ordered: Tensor = gates[list(ONNX_GATES[self.kind])].flatten(0, 1)
        return ordered


class StepLayers(nn.Module):
    """Stacked layers of a decoder for one word, in matrix products; the same numbers as the nn.GRU or nn.LSTM.

    Args:
        rnn: an nn.GRU or nn.LSTM of one direction, batch first, in evaluation.
    """

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        assert isinstance(rnn, (nn.GRU, nn.LSTM))
        self.rnn = rnn
        self.num_layers = rnn.num_layers

    def forward(self, inputs: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | State]:
        """Returns hidden (B, 1, H) and the state, each tensor (layers, B, H), of inputs (B, 1, E)."""
        hidden = inputs[:, 0]
        parts = (state,) if isinstance(state, Tensor) else state
        after: list[State] = []
        for layer in range(self.num_layers):
            names = (f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            w, r, b, c = (getattr(self.rnn, name) for name in names)
            before = tuple(part[layer] for part in parts)
            x, h = F.linear(hidden, w, b), F.linear(before[0], r, c)  # (B, G*H) each
            after.append((_gru(x, h, before[0]),) if isinstance(state, Tensor) else _lstm(x + h, before[1]))
            hidden = after[-1][0]
        stacked = tuple(torch.stack(tensors) for tensors in zip(*after))
        return hidden[:, None], stacked[0] if isinstance(state, Tensor) else stacked


def _gru(x: Tensor, h: Tensor, before: Tensor) -> Tensor:
    """(B, H) the state after gates x and h (B, 3H), r z n."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return new + z * (before - new)


def _lstm(gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H) each: state and memory after gates (B, 4H), i f g o."""
    i, f, g, o = gates.chunk(4, -1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory
