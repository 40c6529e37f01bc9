"""Encoders: embedded tokens (B, T, E) and lengths (B,) to one feature vector a sentence (B, F)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.registry import Registry

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentEncoder(nn.Module):
    """An LSTM or GRU read over the sentence, summed up in one vector.

    Padding stands to the right and a recurrence never looks ahead, so forward states of real tokens do
    not see it; the backward direction reads each sentence reversed within its own length. No packing is
    needed, and the fast CPU kernels stay in use.

    Args:
        input_dim: E, embedding dimensions.
        cell: lstm or gru.
        hidden_dim: units a direction.
        layers: stacked layers.
        bidirectional: reads in both directions; F is then 2 x hidden_dim.
        summary: the last state (of each direction), or the mean or maximum over the real states.
        input_dropout: on the embedded tokens.
        layer_dropout: between layers.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden_dim: Annotated[int, Field(gt=0)] = 256,
        layers: Annotated[int, Field(gt=0)] = 1,
        bidirectional: bool = False,
        summary: Literal["last", "mean", "max"] = "last",
        input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.summary = summary
        self.feature_dim = hidden_dim * (2 if bidirectional else 1)
        sizes = [input_dim] + [self.feature_dim] * (layers - 1)
        self.forward_layers = nn.ModuleList(CELLS[cell](size, hidden_dim, batch_first=True) for size in sizes)
        self.backward_layers = nn.ModuleList(
            CELLS[cell](size, hidden_dim, batch_first=True) for size in sizes if bidirectional
        )
        self.input_dropout = nn.Dropout(input_dropout)
        self.layer_dropout = nn.Dropout(layer_dropout)

    def forward(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Returns features (B, F) of `embedded` (B, T, E) with `lengths` (B,) real tokens."""
        states = self.input_dropout(embedded)  # (B, T, E)
        reverse = _reversal(lengths, embedded.shape[1])  # (B, T)
        for i, layer in enumerate(self.forward_layers):
            inputs = self.layer_dropout(states) if i else states
            states, _ = layer(inputs)  # (B, T, H)
            if self.backward_layers:
                behind, _ = self.backward_layers[i](_reorder(inputs, reverse))
                states = torch.cat([states, _reorder(behind, reverse)], dim=-1)  # (B, T, 2H)
        return self._summarise(states, lengths)

    def _summarise(self, states: Tensor, lengths: Tensor) -> Tensor:
        if self.summary == "last":
            last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
            end = states.gather(1, last).squeeze(1)  # (B, F): the forward direction's last real state
            if not self.backward_layers:
                return end
            half = states.shape[-1] // 2
            return torch.cat([end[:, :half], states[:, 0, half:]], dim=-1)
        real = (torch.arange(states.shape[1], device=states.device)[None] < lengths[:, None])[..., None]  # (B, T, 1)
        if self.summary == "mean":
            return (states * real).sum(1) / lengths[:, None].to(states.dtype)
        return states.masked_fill(~real, -torch.inf).amax(1)


def _reversal(lengths: Tensor, steps: int) -> Tensor:
    """(B, T) positions that reverse each row within its length and leave the padding in place."""
    position = torch.arange(steps, device=lengths.device)[None]
    mirrored = lengths[:, None] - 1 - position
    return torch.where(mirrored >= 0, mirrored, position)


def _reorder(states: Tensor, positions: Tensor) -> Tensor:
    return states.gather(1, positions[..., None].expand_as(states))


ENCODERS = Registry("encoder", {"recurrent": RecurrentEncoder}, default="recurrent")
