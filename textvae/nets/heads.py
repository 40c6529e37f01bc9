"""Further predictions from z alone, that the objective can ask for: they live in the model and learn with it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.registry import Registry
from textvae.types import Batch


class BagOfWords(nn.Module):
    """-sum_t log p(x_t | z), the words of a sentence from z alone, whatever their order.

    p(. | z) = softmax(W tanh(V z + b) + c). The decoder's own words cannot help here, so z must carry what is said.
    </s> is in every sentence and does not count.

    Args:
        latent_dim: D.
        vocabulary: V.
        hidden_dim: units of the layer between; 0 is a linear map from z.

    References:
        Zhao 2017, arXiv 1703.10960, section 3.3.
    """

    unit: ClassVar[str] = "nats"

    def __init__(self, latent_dim: int, vocabulary: int, *, hidden_dim: Annotated[int, Field(ge=0)] = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden_dim) if hidden_dim else None
        self.words = nn.Linear(hidden_dim or latent_dim, vocabulary)

    def forward(self, batch: Batch, z: Tensor) -> Tensor:
        """Returns -log p(bag | z), (S, B) nats a sequence, for z (S, B, D)."""
        features = z if self.hidden is None else torch.tanh(self.hidden(z))
        logits = self.words(features)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # (S, B, V)
        targets = batch.targets.expand(len(z), -1, -1)  # (S, B, T)
        steps = torch.arange(targets.shape[-1], device=targets.device)
        words = steps < batch.lengths[:, None] - 1  # (B, T): </s> is the last of a sentence's targets
        found: Tensor = log_p.gather(-1, targets).masked_fill(~words, 0.0).sum(-1)
        return -found


HEADS = Registry("head", {"bag_of_words": BagOfWords})
