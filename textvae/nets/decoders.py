"""Decoders: a latent z and the words so far to hidden states, one implementation for training and generation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.nets.encoders import CELLS
from textvae.registry import Registry

State = tuple[Tensor, ...]  # each (layers, B, H): one tensor for a GRU, (h, c) for an LSTM


class RecurrentDecoder(nn.Module):
    """An autoregressive LSTM or GRU; forward over T is training, over 1 is a step of generation.

    z enters through the initial state (c0 = W z and h0 = tanh(c0), as in He 2019, arXiv 1901.05534), joined
    to every input, or both. With `latent_dim` 0 it is a language model that starts from zeros.

    Args:
        input_dim: E, embedding dimensions.
        latent_dim: D, may be 0.
        cell: lstm or gru.
        hidden_dim: H.
        layers: stacked layers.
        z_to: where z enters; empty only makes sense without latents.
        input_dropout: on the embedded input words (z is never dropped).
        layer_dropout: between layers.
        output_dropout: on the hidden states that the output layer reads.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden_dim: Annotated[int, Field(gt=0)] = 256,
        layers: Annotated[int, Field(gt=0)] = 1,
        z_to: Annotated[list[Literal["state", "input"]], Field(min_length=1)] = ["state", "input"],  # noqa: B006
        input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        output_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.cell, self.hidden_dim, self.layers = cell, hidden_dim, layers
        self.z_to_input = latent_dim > 0 and "input" in z_to
        self.z_to_state = nn.Linear(latent_dim, layers * hidden_dim) if latent_dim and "state" in z_to else None
        self.input_dropout = nn.Dropout(input_dropout)
        self.output_dropout = nn.Dropout(output_dropout)
        self.rnn = CELLS[cell](
            input_dim + (latent_dim if self.z_to_input else 0),
            hidden_dim,
            layers,
            batch_first=True,
            dropout=layer_dropout if layers > 1 else 0.0,
        )

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, each tensor (layers, B, H), for z (B, D)."""
        shape = (self.layers, z.shape[0], self.hidden_dim)
        if self.z_to_state is None:
            memory = z.new_zeros(shape)
        else:
            memory = self.z_to_state(z).view(z.shape[0], self.layers, self.hidden_dim).transpose(0, 1).contiguous()
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
        inputs = self.input_dropout(embedded)
        if self.z_to_input:
            inputs = torch.cat([inputs, z[:, None].expand(-1, inputs.shape[1], -1).to(inputs.dtype)], dim=-1)
        # Under autocast the state arrives in another precision than the inputs.
        hidden, after = self.rnn(inputs, state[0] if self.cell == "gru" else state)
        return self.output_dropout(hidden), (after,) if self.cell == "gru" else after


DECODERS = Registry("decoder", {"recurrent": RecurrentDecoder}, default="recurrent")
