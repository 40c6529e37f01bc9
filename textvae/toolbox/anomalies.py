"""How odd a sentence is to a run: its ELBO against those of a reference corpus, and which of its tokens is to blame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from textvae.errors import UserError, suggest
from textvae.generation import given
from textvae.text import corpora
from textvae.text.batching import collate
from textvae.toolbox.unknown import pieces

if TYPE_CHECKING:
    from textvae.api import TextVAE

MEASURES = ("token", "sentence")


class Anomaly(NamedTuple):
    """A sentence's oddness."""

    nats: float  # -ELBO of the sentence, the mean over draws of z
    nats_per_token: float  # </s> counted
    above: float  # share of the reference corpus that is less odd, 0 to 1, by the measure chosen
    anomalous: bool  # beyond the threshold


class AnomalyDetector:
    """A threshold on the -ELBO at a percentile of a reference corpus.

    A sentence's score is -ELBO(x) = E_q[-log p(x|z)] + KL(q(z|x) || p(z)) in nats, which bounds -log p(x) from above,
    whole or over its tokens. Long sentences score high by the sentence, short ones with rare words by the token; and
    a likelihood finds what is unlike the corpus word by word, not what is strange and simple.

    Args:
        vae: a run.
        reference: what is usual: N sentences that the run was not trained on.
        percentile: of the reference that counts as usual, above 0, below 100.
        measure: token or sentence.
        draws: of z a sentence.
        seed: of the draws.

    Raises:
        UserError: fewer than 2 sentences, a number out of range, an unknown measure, or a plain autoencoder, whose
            sentences have no likelihood.

    References:
        An & Cho 2015 (variational autoencoder based anomaly detection); Nalisnick 2019, arXiv 1810.09136 (what a
        likelihood does not find).
    """

    def __init__(
        self,
        vae: TextVAE,
        reference: Sequence[str],
        *,
        percentile: float = 99.0,
        measure: str = "token",
        draws: int = 4,
        seed: int = 0,
    ) -> None:
        if measure not in MEASURES:
            raise UserError(f"measure: got {measure!r}{suggest(measure, MEASURES)}")
        if not 0 < percentile < 100:
            raise UserError(f"percentile: got {percentile}; it must lie between 0 and 100")
        draws, reference = given.count(draws, "draws", 1), given.texts(reference, "reference")
        if len(reference) < 2:
            raise UserError(f"reference: got {len(reference)} sentences; a threshold needs 2 or more")
        self._vae, self._draws, self._seed = vae, draws, seed
        self.measure = measure
        self._reference = np.sort(self._of(self._nats(reference)))
        self.threshold = float(np.quantile(self._reference, percentile / 100))  # nats a token, or a sentence

    def score(self, texts: Sequence[str]) -> list[Anomaly]:
        """Returns each text's figures; row i belongs to text i."""
        both = self._nats(given.texts(texts))
        chosen = self._of(both)
        above = np.searchsorted(self._reference, chosen, side="left") / len(self._reference)
        return [
            Anomaly(float(nats), float(per_token), float(share), bool(value > self.threshold))
            for (nats, per_token), share, value in zip(both, above, chosen)
        ]

    def _of(self, both: NDArray[np.float64]) -> NDArray[np.float64]:
        return both[:, MEASURES[::-1].index(self.measure)]

    def _nats(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N, 2): nats a sentence, and a token."""
        runs = [self._vae.score(texts, seed=self._seed + draw) for draw in range(self._draws)]
        nats = np.array([[row["nll_elbo"] for row in rows] for rows in runs]).reshape(self._draws, -1).mean(0)
        return np.stack([nats, nats / np.array([row["tokens"] for row in runs[0]])], -1)


def token_nats(vae: TextVAE, text: str) -> list[tuple[str, float]]:
    """Returns each token and its -log p(token | those before, z) in nats, z the posterior mean; </s> is the last.

    The sum is -log p(x|z), the reconstruction's part of the -ELBO at the mean. A word that the vocabulary lacks stands
    as zebra(<unk>): the nats are those of <unk>.
    """
    batch = vae.on_device(collate(vae.ids(given.texts([text])), vae.tokenizer.pad_id))
    ids = batch.tokens[0].tolist()
    words = [*pieces(vae.tokenizer, corpora.cleaned(text, vae.recipe.data), ids[1:-1]), "</s>"]
    found = []
    with torch.inference_mode():
        z = vae.encode([text]).to(vae.device) if vae.latent_dim else torch.zeros(1, 0, device=vae.device)
        state = vae.model.start(z)
        for token, following, word in zip(batch.tokens[0, :-1], ids[1:], words):
            logits, state = vae.model.step(token[None], z, state)
            nats = float(torch.logsumexp(logits[0].double(), 0) - logits[0, following].double())
            found.append((word, nats))
    return found
