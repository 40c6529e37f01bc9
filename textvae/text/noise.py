"""Noise on token ids: modules that act in training and stand aside under `.eval()`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WordDropout(nn.Module):
    """Replaces a share of the decoder's input words by <unk>, so that it must ask z (Bowman 2016, section 3.1).

    <s> stays, targets are never touched, and nothing happens in evaluation.

    Args:
        rate: the share of words replaced.
        unk_id: what stands in their place.
    """

    def __init__(self, rate: float, unk_id: int) -> None:
        super().__init__()
        self.rate = rate
        self.unk_id = unk_id

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns decoder inputs (B, T) with words dropped; column 0 holds <s>."""
        if not self.training or self.rate == 0:
            return inputs
        dropped = torch.rand(inputs.shape, device=inputs.device) < self.rate
        dropped[:, 0] = False
        return inputs.masked_fill(dropped, self.unk_id)
