"""An output layer that predicts a token's embedding; the nearest embedding is the predicted token."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from textvae.nets.output import PIECE_ELEMENTS


class NearestEmbedding(nn.Module):
    """Predicts e = W h + b among the embeddings e_v of the decoder's own table, brought to unit length.

    With k the sharpness and the distance d_v either |e - e_v|^2 or 1 - cos(e, e_v):

        in training    -k d(target): the log density of the target's embedding up to a constant, under a Gaussian of
                       variance 1 / 2k around e, or a von Mises-Fisher of concentration k around e / |e|;
        in evaluation  log p(token) = log softmax_v(-k d_v): of a distribution over tokens, comparable with that of a
                       softmax layer. The nearest embedding is the likeliest token.

    A training step costs N * E, whatever V is. (Kumar & Tsvetkov take |e| for the concentration; here it is k.)

    Args:
        hidden_dim: H.
        vocabulary: V.
        distance: "squared_error" or "cosine".
        sharpness: k; larger ones weigh a token more against the rest of the objective, and make p(token) surer.

    References:
        Kumar & Tsvetkov 2019, arXiv 1812.04616.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocabulary: int,
        *,
        distance: Literal["squared_error", "cosine"] = "squared_error",
        sharpness: Annotated[float, Field(gt=0)] = 10.0,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.vocabulary = vocabulary
        self.distance = distance
        self.sharpness = sharpness
        self.projection: nn.Linear | None = None
        self._table: tuple[nn.Embedding, ...] = ()

    def attach(self, embedding: nn.Embedding) -> None:
        """Takes the decoder's embeddings (V, E) as the tokens' places, and makes the projection to them.

        Raises:
            ValueError: a table of another number of tokens.
        """
        if embedding.num_embeddings != self.vocabulary:
            raise ValueError(
                f"nearest_embedding predicts {self.vocabulary} tokens; the table has {embedding.num_embeddings}"
            )
        self.projection = nn.Linear(self.hidden_dim, embedding.embedding_dim)
        # In a tuple: as an attribute the table would be this module's too, and stand in a checkpoint twice.
        self._table = (embedding,)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns -k d_v of all tokens, (..., V) float32, for hidden states (..., H)."""
        predicted = self._predict(hidden)
        # Half precision would mistake neighbours for each other.
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self._scores(predicted, self._unit_table(predicted))
            if self.distance == "squared_error":
                scores = scores - self.sharpness * predicted.square().sum(-1, keepdim=True)
        return scores.float()

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns -k d(target), in evaluation log p(target) in nats, (N,) float32.

        Args:
            hidden: (N, H).
            targets: (N,) int64.
        """
        predicted = self._predict(hidden)  # (N, E)
        with torch.autocast(hidden.device.type, enabled=False):
            if self.training:
                return -self.sharpness * self._distance(predicted, targets)
            unit = self._unit_table(predicted)
            piece = max(1, PIECE_ELEMENTS // self.vocabulary)
            return torch.cat(
                [self._log_probability(e, unit, t) for e, t in zip(predicted.split(piece), targets.split(piece))]
            )

    def _predict(self, hidden: Tensor) -> Tensor:
        """The prediction e, (..., E), float32 or float64; of unit length for the cosine."""
        assert self.projection is not None, "attach() comes first"
        predicted: Tensor = self.projection(hidden)
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        return F.normalize(predicted, dim=-1) if self.distance == "cosine" else predicted

    def _distance(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """From the prediction to the target, (N,)."""
        # A target is only a place, and has no gradient: else all embeddings would move to one point, where every
        # distance is 0 and nothing is said. Unit length for the same end: were they to shrink through the decoder's
        # inputs, so would the distances. A row of norm 0 stays 0.
        target = F.normalize(self._table[0].weight.detach()[targets].to(predicted.dtype), dim=-1)  # (N, E)
        if self.distance == "cosine":
            return 1 - (predicted * target).sum(-1)
        return (predicted - target).square().sum(-1)

    def _unit_table(self, like: Tensor) -> Tensor:
        """The places of all tokens, (V, E), in the type of `like`."""
        return F.normalize(self._table[0].weight.detach().to(like.dtype), dim=-1)

    def _scores(self, predicted: Tensor, unit: Tensor) -> Tensor:
        """-k d_v, (..., V), but for what all tokens share: -k |e|^2 is left out, which a softmax does not see."""
        products = F.linear(predicted, unit)  # e . e_v
        if self.distance == "cosine":
            return self.sharpness * (products - 1)
        # The norms are 1, or 0 where an embedding is.
        return self.sharpness * (2 * products - unit.square().sum(-1))

    def _log_probability(self, predicted: Tensor, unit: Tensor, targets: Tensor) -> Tensor:
        """Of each target, (n,) nats."""
        scores = self._scores(predicted, unit)  # (n, V)
        return scores.gather(1, targets[:, None]).squeeze(1) - scores.logsumexp(1)
