"""Sampling by label: a prior fitted to each label's latents."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textvae.errors import UserError, suggest
from textvae.generation import given
from textvae.latent import fitted
from textvae.latent.posteriors import sample
from textvae.seeds import set_aside

if TYPE_CHECKING:
    from textvae.api import TextVAE


class LabelledPrior:
    """p(z | label): for each label a prior fitted to the aggregate posterior of its sentences.

    Args:
        priors: label -> prior, whose forward() gives a distribution.
    """

    def __init__(self, priors: Mapping[Any, nn.Module]) -> None:
        self.priors = priors

    def sample_latents(self, label: Hashable, n: int, *, seed: int | None = None) -> Tensor:
        """Returns n draws of p(z | label), (n, D) float32; torch's global state stays as it was.

        Raises:
            UserError: a label that is not known, or n below 0.
        """
        if label not in self.priors:
            raise UserError(f"label: got {label!r}{suggest(label, self.priors)}")
        n, seed = given.count(n, "n"), given.seed(seed)
        with set_aside(torch.Generator().seed() if seed is None else seed), torch.inference_mode():
            z: Tensor = self.priors[label]().sample(torch.Size([n]))
        return z.cpu()

    def sample(self, vae: TextVAE, label: Hashable, n: int, *, seed: int | None = None, **options: Any) -> list[str]:
        """Returns n texts of a label. Options are of decoding."""
        return vae.decode(self.sample_latents(label, n, seed=seed), seed=seed, **options)


def fit_by_label(
    vae: TextVAE,
    texts: Sequence[str],
    labels: Iterable[Hashable],
    *,
    kind: str = "mixture",
    components: int = 10,
    seed: int = 0,
) -> LabelledPrior:
    """Fits a prior to each label's latents: p(z | label), to the mean of q(z|x) over the label's sentences.

    Args:
        vae: a run.
        texts: N sentences, hundreds of each label.
        labels: N labels.
        kind: gaussian, mixture or flow; see `textvae.latent.fitted.fit`.
        components: of a mixture; no more than a label has sentences.
        seed: of the fits.

    Raises:
        UserError: other numbers of labels than texts, none, or a label with too few sentences.

    References:
        Dempster 1977 (EM); Ghosh 2020, arXiv 1903.12436 (fitting after training).
    """
    texts = given.texts(texts)
    labels = given.labels(labels, len(texts))
    if not labels:
        raise UserError("labels: got none; a label is needed for each of 1 or more sentences")
    known = sorted(set(labels), key=str)
    for label in known:
        with _named(label):
            fitted.check(kind, components, sum(other == label for other in labels))
    means, scales = posteriors_to_fit(vae, texts, seed=seed)
    priors: dict[Hashable, nn.Module] = {}
    for label in known:
        rows = torch.tensor([other == label for other in labels])
        generator = torch.Generator().manual_seed(seed)
        with _named(label):
            priors[label] = fitted.fit(kind, means[rows], scales[rows], components=components, generator=generator)
    return LabelledPrior(priors)


def posteriors_to_fit(vae: TextVAE, texts: Sequence[str], *, seed: int) -> tuple[Tensor, Tensor]:
    """Returns means and standard deviations (N, D) of Gaussians that a prior can be fitted to.

    Of other posteriors than Gaussian ones (flows) a draw of each, which is a Gaussian without width.

    Raises:
        UserError: posteriors on a sphere, from which a prior in the space around it draws nothing.
    """
    kind = vae.recipe.model.posterior.kind
    if kind == "von_mises_fisher":
        raise UserError(
            "fit_prior: the run's latents lie on a sphere (model.posterior: von_mises_fisher), and what can be fitted "
            "draws anywhere; sample from the run's own prior"
        )
    if kind != "flow":
        return vae.encode_distribution(texts)
    drawn = torch.empty(len(texts), vae.latent_dim)
    noise = torch.randn(1, len(texts), vae.latent_dim, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        for rows, batch in vae.batches(texts):
            drawn[rows] = sample(vae.model.encode(batch), 1, noise[:, rows].to(vae.device))[0].float().cpu()
    return drawn, torch.zeros_like(drawn)


@contextlib.contextmanager
def _named(label: Hashable) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"label {label!r}: {error}") from error
