"""Decoders: a latent z and the words so far to hidden states, one implementation for training and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.nets.dropout import of_inputs, read_with_dropped_weights
from textvae.nets.encoders import CELLS
from textvae.nets.recurrence import Layer, Step, layer_of, read
from textvae.registry import Registry

State = tuple[Tensor, ...]  # each (layers, B, H): one tensor for a GRU, (h, c) for an LSTM


class RecurrentDecoder(nn.Module):
    """An autoregressive LSTM or GRU; forward over T is training, over 1 is a step of generation.

    z enters through the initial state (c0 = W z and h0 = tanh(c0), as in He 2019, arXiv 1901.05534), joined to
    every input, joined to every layer's input, added (W z) to the hidden states that the output layer reads, or
    several of these: [layers, output] are the skip connections of Dieng 2019 (arXiv 1807.04863, section 3.1), into
    every step and layer. With `latent_dim` 0 it is a language model that starts from zeros.

    Args:
        input_dim: E, embedding dimensions.
        latent_dim: D, may be 0.
        cell: lstm or gru.
        hidden_dim: H.
        layers: stacked layers.
        z_to: where z enters: state, input (of the first layer), layers (the input of each), output.
        input_dropout: on the embedded input words (z is never dropped).
        layer_dropout: between layers. Where z does not join there cuDNN draws it on a GPU, from a state that no seed
            reaches: a resumed run draws others.
        output_dropout: on the hidden states that the output layer reads.
        shared_dropout: input and output dropout, and that between layers where z joins there, take one mask for all
            steps of a sentence (variational dropout, Gal 2016, arXiv 1512.05287), not one for each.
        recurrent_dropout: on the weights from one step's state to the next, one mask a batch (DropConnect, Merity
            2018, arXiv 1708.02182).
        z_scale: z is multiplied by it on its way in. What the decoder can compute stays the same; the weights that read
            z learn more slowly, by the scale's square under SGD and by the scale under Adam. As long as z says
            nothing it is noise, which the other weights have to learn to bear.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden_dim: Annotated[int, Field(gt=0)] = 256,
        layers: Annotated[int, Field(gt=0)] = 1,
        z_to: Annotated[list[Literal["state", "input", "layers", "output"]], Field(min_length=1)] = [  # noqa: B006
            "state",
            "input",
        ],
        input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        output_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        shared_dropout: bool = False,
        recurrent_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        z_scale: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.z_scale, self.recurrent_dropout = z_scale, recurrent_dropout
        self.cell, self.hidden_dim, self.layers = cell, hidden_dim, layers
        self.z_to_layers = latent_dim > 0 and "layers" in z_to
        self.z_to_input = latent_dim > 0 and ("input" in z_to or self.z_to_layers)
        self.z_to_output = nn.Linear(latent_dim, hidden_dim, bias=False) if latent_dim and "output" in z_to else None
        self.z_to_state = nn.Linear(latent_dim, layers * hidden_dim) if latent_dim and "state" in z_to else None
        self.input_dropout = of_inputs(input_dropout, shared=shared_dropout)
        self.output_dropout = of_inputs(output_dropout, shared=shared_dropout)
        width = input_dim + (latent_dim if self.z_to_input else 0)
        # z joins between the layers only where they are separate; the first is then the whole of a smaller stack.
        fused = 1 if self.z_to_layers else layers
        dropout = layer_dropout if fused > 1 else 0.0
        self.rnn = CELLS[cell](width, hidden_dim, fused, batch_first=True, dropout=dropout)
        self.upper = nn.ModuleList(
            CELLS[cell](hidden_dim + latent_dim, hidden_dim, batch_first=True) for _ in range(layers - fused)
        )
        self.layer_dropout = of_inputs(layer_dropout, shared=shared_dropout)

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, each tensor (layers, B, H), for z (B, D)."""
        shape = (self.layers, z.shape[0], self.hidden_dim)
        if self.z_to_state is None:
            memory = z.new_zeros(shape)
        else:
            memory = (
                self.z_to_state(self._scaled(z))
                .view(z.shape[0], self.layers, self.hidden_dim)
                .transpose(0, 1)
                .contiguous()
            )
        if self.cell == "gru":
            return (torch.tanh(memory),)
        return torch.tanh(memory), memory

    def forward(self, embedded: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads T words.

        Args:
            embedded: (B, T, E), the words to read.
            z: (B, D).
            state: from `start` or from the call before.

        Returns:
            Hidden states (B, T, H), ready for the output layer, and the state after the last word.
        """
        inputs, z = self.input_dropout(embedded), self._scaled(z)
        if self.z_to_input:
            inputs = _join(inputs, z)
        hidden, after = self._read(self.rnn, inputs, tuple(part[: self.rnn.num_layers] for part in state))
        for i, layer in enumerate(self.upper, start=1):
            inputs = _join(self.layer_dropout(hidden), z)
            hidden, above = self._read(cast(nn.RNNBase, layer), inputs, tuple(part[i : i + 1] for part in state))
            after = tuple(torch.cat(parts) for parts in zip(after, above))
        if self.z_to_output is not None:
            hidden = hidden + self.z_to_output(z)[:, None]
        return self.output_dropout(hidden), after

    @property
    def can_read_draws(self) -> bool:
        """Whether `read_draws` and `steps` know the weights: not where other modules stand in place of torch's."""
        return all(
            type(module) in (nn.LSTM, nn.GRU) and module.bias and not module.bidirectional and not module.proj_size
            for module in (self.rnn, *self.upper)
        )

    def read_draws(self, embedded: Tensor, z: Tensor, going: Sequence[int]) -> Tensor:
        """Reads sentences under several draws of z each: what `forward` computes, in evaluation and without gradients.

        Args:
            embedded: (B, T, E), the words, from the longest sentence to the shortest.
            z: (B, S, D).
            going: the number of sentences that have a step t, for each t.

        Returns:
            Hidden states (sum of going * S, H): step after step, of each the sentences that have it, of each its draws.
        """
        samples, flat = z.shape[1], z.flatten(0, 1)
        state, hidden = self.start(flat), embedded
        flat = self._scaled(flat)
        for i, (layer, joined) in enumerate(self._weights(z.shape[2])):
            beside = flat if joined else None
            hidden = read(layer, hidden, beside, [part[i] for part in state], going, samples)
        if self.z_to_output is not None:
            shift = self.z_to_output(flat)
            for part in hidden.split([count * samples for count in going]):
                part += shift[: len(part)]
        return hidden

    def steps(self, latent_dim: int, rows: int) -> Callable[[Tensor, Tensor, State], tuple[Tensor, State]]:
        """Returns what `forward` computes for one word (R, E) a row, in evaluation and without gradients.

        It is for many steps, of `rows` rows at most, or so: the weights are made ready once, and must not change while
        it is in use. It returns hidden states (R, H) and the state, whose tensors are (layers, R, H), as ever.
        """
        layers = [Step(layer, joined, rows) for layer, joined in self._weights(latent_dim)]

        def take(embedded: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
            z, hidden, after = self._scaled(z), embedded, []
            for i, layer in enumerate(layers):
                after.append(layer(hidden, z, [part[i] for part in state]))
                hidden = after[-1][0]
            if self.z_to_output is not None:
                hidden = hidden + self.z_to_output(z)
            return hidden, tuple(torch.stack(parts) for parts in zip(*after))

        return take

    def _weights(self, latent_dim: int) -> list[tuple[Layer, int]]:
        """Those of all layers, as `recurrence` takes them, each with how many dimensions of z join its input."""
        joined = [latent_dim if self.z_to_layers or (self.z_to_input and i == 0) else 0 for i in range(self.layers)]
        stacks = [(self.rnn, i) for i in range(self.rnn.num_layers)] + [(upper, 0) for upper in self.upper]
        return [(layer_of(stack, i), width) for (stack, i), width in zip(stacks, joined)]

    def _scaled(self, z: Tensor) -> Tensor:
        return z if self.z_scale == 1.0 else z * self.z_scale

    def _read(self, rnn: nn.RNNBase, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        state = tuple(part.contiguous() for part in state)
        if self.training and self.recurrent_dropout:
            return read_with_dropped_weights(rnn, inputs, state, self.recurrent_dropout)
        hidden, after = rnn(inputs, state[0] if self.cell == "gru" else state)
        return hidden, (after,) if self.cell == "gru" else after


def _join(inputs: Tensor, z: Tensor) -> Tensor:
    """(B, T, E + D): z beside every input; in memory step after step, as the inputs may be."""
    beside = z[None].expand(inputs.shape[1], -1, -1).to(inputs.dtype)
    return torch.cat([inputs.transpose(0, 1), beside], dim=-1).transpose(0, 1)


DECODERS = Registry("decoder", {"recurrent": RecurrentDecoder}, default="recurrent")
