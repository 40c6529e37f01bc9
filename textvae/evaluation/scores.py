"""The figures of single texts, row for row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from textvae.distributed import all_results, is_mine
from textvae.errors import UserError
from textvae.evaluation import bounds
from textvae.latent.divergences import kl
from textvae.latent.posteriors import Point
from textvae.text.batching import collate
from textvae.types import Batch


def score(vae: Any, texts: Sequence[str], *, iw_samples: int | None, seed: int) -> list[dict[str, float]]:
    """Returns the figures of `textvae.api.TextVAE.score`, whose work this is."""
    together = vae.together
    # A draw belongs to its sentence, whatever stands beside it in a batch.
    noise = torch.randn(1, len(texts), vae.latent_dim, generator=torch.Generator().manual_seed(seed))
    found: dict[int, dict[int, dict[str, float]]] = {}
    with torch.inference_mode():
        for number, (rows, batch) in enumerate(vae.batches(texts)):
            if is_mine(number, together=together):
                scored = _of_batch(vae.model, batch, noise[:, rows].to(vae.device))
                found[number] = dict(zip(rows.tolist(), scored))
    rows_of = {row: figures for part in all_results(found, together=together) for row, figures in part.items()}
    if iw_samples is not None:
        sentences = vae.ids(texts)
        batches = (vae.on_device(collate([sentence], vae.tokenizer.pad_id)) for sentence in sentences)
        generator = vae.generator(seed)
        estimates = (
            bounds.iw_nll(vae.model, batches, samples=iw_samples, generator=generator, together=together).nll.tolist()
            if sentences
            else []
        )
        for row, estimate in enumerate(estimates):
            rows_of[row]["nll_iw"] = estimate
    return [rows_of[row] for row in range(len(texts))]


def _of_batch(model: Any, batch: Batch, noise: torch.Tensor) -> list[dict[str, float]]:
    output = model(batch, noise=noise)
    reconstruction = -output.log_likelihood[0].double()
    rate = torch.zeros_like(reconstruction)
    if isinstance(output.posterior, Point):
        raise UserError(
            "score: the run is a plain autoencoder (model.posterior.kind: point), whose sentences have "
            "no likelihood; reconstruct and evaluate say what it gives back"
        )
    if model.latent_dim:
        rate = kl(output.posterior, output.prior, output.z).double()
    return [
        {
            "nll_elbo": lost + held,
            "reconstruction": lost,
            "kl": held,
            "tokens": tokens,
            "ppl_elbo": bounds.perplexity(lost + held, tokens),
        }
        for lost, held, tokens in zip(reconstruction.tolist(), rate.tolist(), batch.lengths.tolist())
    ]
