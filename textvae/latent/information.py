"""Information terms: what z tells of the sentence, how its dimensions depend, how far its posteriors spread."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent

from textvae.distributed import gather_rows
from textvae.latent.divergences import diagonal_gaussian, shown

Sentences = Annotated[int, Field(ge=1)]


def kl_decomposition(
    posterior: Distribution, prior: Distribution, z: Tensor, *, sentences: int | None = None
) -> dict[str, Tensor]:
    """Returns the parts of the mean KL(q(z|x) || p(z)), () nats each, over all processes' sentences.

    mutual_information + total_correlation + dimension_kl = E[log q(z|x) - log p(z)] on these draws, where
    I = E[log q(z|x) - log q(z)], TC = E[log q(z) - sum_d log q(z_d)] and the last is
    E[sum_d log q(z_d) - log p(z)], the sum of KL(q(z_d) || p(z_d)) where the prior's dimensions are independent.

    Args:
        posterior: q(z|x), batch (B,), its dimensions independent.
        prior: p(z).
        z: (S, B, D); the first draw of each sentence enters.
        sentences: in the data set; None takes the batch for the whole (see `TotalCorrelation`).

    References:
        Chen 2018, arXiv 1802.04942, equation 2.
    """
    by_dimension, rows = _pairwise_by_dimension(posterior, z, "kl_decomposition")
    joint = by_dimension.sum(-1)  # (B, B)
    own = joint.diagonal()
    aggregate = _log_mixture(joint, sentences)
    product = _log_mixture(by_dimension, sentences).sum(-1)
    return {
        "mutual_information": (own - aggregate).mean(),
        "total_correlation": (aggregate - product).mean(),
        "dimension_kl": (product - prior.log_prob(rows)).mean(),
    }


class TotalCorrelation:
    """TC(z) = KL(q(z) || prod_d q(z_d)) of the aggregate posterior, estimated from one batch.

    TC = E[log q(z) - sum_d log q(z_d)], where the densities at sentence i's draw are mixtures over the batch,
    q(z_i) = q(z_i|x_i) / N + (1 - 1/N) mean over j != i of q(z_i|x_j): unbiased as densities, biased by their
    logarithms, and ever less so the more posteriors cover a draw. The minibatch weights 1 / NM of Chen 2018
    (equation 5) differ from N = M here by the constant (D - 1) log N alone, which hides that TC is 0 at q = p.

    Args:
        sentences: N, the size of the data set. None takes the batch for the whole, M sentences of all processes.

    References:
        Chen 2018, arXiv 1802.04942, equation 2 and appendix C.2.
    """

    unit: ClassVar[str] = "nats"

    def __init__(self, *, sentences: Sentences | None = None) -> None:
        self.sentences = sentences

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), nats; 0 for a batch of one sentence.

        Raises:
            ValueError: a posterior whose dimensions are not independent given the sentence.
        """
        by_dimension, _ = _pairwise_by_dimension(posterior, z, "total_correlation")
        aggregate = _log_mixture(by_dimension.sum(-1), self.sentences)
        return (aggregate - _log_mixture(by_dimension, self.sentences).sum(-1)).mean()


class MutualInformationReward:
    """-I(x; z) under q, estimated from one batch: a positive weight rewards latents that tell sentences apart.

    I = E[log q(z|x) - log q(z)] with q(z) as in `TotalCorrelation`; never above log N, however large the true I.
    A weight a beside a KL of weight 1 is InfoVAE's objective with its alpha = a and lambda = 1: the rate I keeps the
    weight 1 - a, the aggregate's KL(q(z) || p(z)) the weight 1.

    Args:
        sentences: N, the size of the data set. None takes the batch for the whole.

    References:
        Zhao 2017, arXiv 1706.02262, equation 6; Hoffman & Johnson 2016.
    """

    unit: ClassVar[str] = "nats"

    def __init__(self, *, sentences: Sentences | None = None) -> None:
        self.sentences = sentences

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), nats, at most 0 but for the estimate's error; 0 for a batch of one sentence."""
        rows = gather_rows(z[0])  # (M, D)
        joint = _pairwise(posterior, rows)  # (M, M)
        return (_log_mixture(joint, self.sentences) - joint.diagonal()).mean()


class LogVariancePenalty:
    """sum_d |log sigma_d^2| of each posterior, which keeps the noise of a (denoising) adversarial autoencoder alive.

    0 where each variance is 1, whatever the prior's.

    References:
        Shen 2020, arXiv 1905.12777, section 4 (LAAE); Rubenstein 2018, arXiv 1802.03761.
    """

    unit: ClassVar[str] = "log variance"

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,), the sum over dimensions.

        Raises:
            ValueError: a posterior that is no diagonal Gaussian.
        """
        gaussian = diagonal_gaussian(posterior)
        if gaussian is None:
            raise ValueError(
                f"log_variance needs a variance of each dimension, which only diagonal Gaussians have; the posterior "
                f"is {shown(posterior)}. Use model.posterior: {{kind: gaussian}}"
            )
        return (2.0 * gaussian.scale.log()).abs().sum(-1)


class Dispersion:
    """sum_d max(0, target - Var_x[mu_d(x)]): the posteriors' means must spread by `target` in every dimension.

    The variance is the unbiased one over all processes' sentences. It is the diversity of DU-VAE as a penalty:
    the paper reaches it with batch normalisation on the means (and dropout on the variances), without a loss.
    At q = p, where the means are equal, the term is D * target, not 0.

    Args:
        target: the least variance; the paper's code runs text with a standard deviation gamma = 0.5 of the means.

    References:
        Shen 2021, arXiv 2110.12381; Zhu 2020, arXiv 2004.12585 (BN-VAE).
    """

    unit: ClassVar[str] = "latent units squared"

    def __init__(self, *, target: Annotated[float, Field(ge=0)] = 0.25) -> None:
        self.target = target

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in latent units squared; 0 for a batch of one sentence, which has no variance."""
        means = gather_rows(posterior.mean)  # (B, D)
        if len(means) < 2:
            return means.sum() * 0.0
        return (self.target - means.var(0)).clamp_min(0).sum()


def _pairwise(posterior: Distribution, rows: Tensor) -> Tensor:
    """log q(z_i|x_j), (M, M, ..) with j first, of all processes' rows z_i (M, D) under all their posteriors."""
    # Each process scores every row under its own posteriors; no distribution has to be sent.
    own: Tensor = posterior.log_prob(rows[:, None])  # (M, B, ..)
    return gather_rows(own.transpose(0, 1).contiguous())


def _pairwise_by_dimension(posterior: Distribution, z: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The same by dimension, (M, M, D), and the rows (M, D)."""
    if not isinstance(posterior, Independent):
        raise ValueError(
            f"{kind} needs the density of each dimension, which only posteriors with independent dimensions have; "
            f"the posterior is {shown(posterior)}. Use model.posterior: {{kind: gaussian}}"
        )
    rows = gather_rows(z[0])
    return _pairwise(posterior.base_dist, rows), rows


def _log_mixture(log_density: Tensor, sentences: int | None) -> Tensor:
    """log q(z_i), (M, ..), of log q(z_i|x_j) (M, M, ..) with j first; the others stand for the data set."""
    batch = len(log_density)
    total = max(sentences or batch, batch)
    if batch == 1:
        return log_density[0]
    weights = log_density.new_full((batch, batch), math.log1p(-1 / total) - math.log(batch - 1))
    weights.fill_diagonal_(-math.log(total))
    weights = weights.view(batch, batch, *[1] * (log_density.dim() - 2))
    return torch.logsumexp(log_density + weights, dim=0)
