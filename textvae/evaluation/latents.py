"""What z says of the sentence: mutual information, active units, KL by dimension."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from textvae.errors import UserError
from textvae.latent import divergences
from textvae.latent.divergences import shown
from textvae.latent.posteriors import Point

PAIRS_AT_ONCE = 2**22  # log q(z_i | x_j) held at a time: 32 MB in float64


class MutualInformation(NamedTuple):
    """An estimate of I(x; z) under q, and the highest value it can take."""

    nats: float
    ceiling: float  # ln N


class Decomposition(NamedTuple):
    """The mean KL(q(z|x) || p(z)) on the draws, in nats a sentence: the sum of the first three."""

    mutual_information: float
    total_correlation: float
    dimension_kl: float
    ceiling: float  # ln N, of the mutual information
    by_dimension: list[float] | None  # KL(q(z_d) || p(z_d)); None where the prior's dimensions depend on each other


def mutual_information(
    posteriors: Sequence[Distribution], z: Tensor, *, at_most: int | None = None
) -> MutualInformation:
    """Estimates the mutual information of sentence and latent under q, over a whole set of N sentences.

    I(x; z) = E_x KL(q(z|x) || p(z)) - KL(q(z) || p(z)) = E log q(z|x) - E log q(z), with the aggregate posterior
    q(z) = (1/N) sum_j q(z|x_j) taken over all N, so that the ceiling is ln N; over batches of 32 it would be ln 32.

    Args:
        posteriors: q(z|x) of the sentences, batch by batch (B,), event (D,).
        z: (S, N, D), draws from each posterior, in the same order.
        at_most: average over so many sentences evenly spaced in the set; q(z) is of all N even then.

    Returns:
        The estimate in nats a sentence, and ln N. Sampling can carry it a little below 0.

    Raises:
        ValueError: another number of sentences in z than in the posteriors.

    References:
        Hoffman & Johnson 2016 ("ELBO surgery"); He 2019, arXiv 1901.05534, section 3.2.
    """
    own = _own_log_prob(posteriors, z)  # (S, N)
    count = own.shape[1]
    chosen = torch.arange(count, device=z.device)
    if at_most is not None and at_most < count:
        chosen = torch.arange(at_most, device=z.device) * count // at_most
    aggregate = aggregate_log_prob(posteriors, z[:, chosen].flatten(0, 1))
    return MutualInformation(float((own[:, chosen].flatten() - aggregate).mean()), math.log(count))


def batch_mutual_information(posteriors: Sequence[Distribution], z: Tensor, *, size: int = 32) -> MutualInformation:
    """Estimates I(x; z) as He 2019 does, with q(z) taken over a batch: for comparison with published tables alone.

    mean over batches of E log q(z|x) - log (1/B) sum_j q(z|x_j). Biased low without end: a batch of B can never
    show more than ln B (3.47 for 32), however much z tells. `mutual_information` takes the whole set.

    Args:
        posteriors: q(z|x) of the sentences, batch by batch (B',), event (D,).
        z: (S, N, D), draws from each posterior, in the same order; the first draw enters.
        size: B; batches are cut to it, and none spans two of the given ones.

    Returns:
        Nats a sentence, and the ceiling, the mean of ln B over sentences (batches' ends are smaller).

    Raises:
        UserError: a point posterior, no sentence, or draws of another number of sentences.

    References:
        He 2019, arXiv 1901.05534, section 3.2; Dieng 2019, arXiv 1807.04863.
    """
    count = check_draws(posteriors, z)
    if size < 1:
        raise UserError(f"size: got {size}; at least 1 is needed")
    total, ceiling, begin = 0.0, 0.0, 0
    for posterior in posteriors:
        for rows in torch.arange(posterior.batch_shape[0]).split(size):
            own = z[0, begin + rows]  # (B, D)
            every = posterior.log_prob(own[:, None].expand(-1, posterior.batch_shape[0], -1))[:, rows]
            pairs = float64(every)  # (B, B) log q(z_i | x_j)
            ceiling += len(rows) * math.log(len(rows))
            total += float((pairs.diagonal() - pairs.logsumexp(1) + math.log(len(rows))).sum())
        begin += posterior.batch_shape[0]
    return MutualInformation(total / count, ceiling / count)


def decompose(
    posteriors: Sequence[Distribution], prior: Distribution, z: Tensor, *, at_most: int = 2000
) -> Decomposition:
    """Takes the mean KL apart over the whole set of N sentences.

    KL = I(x; z) + TC + sum_d KL(q(z_d) || p(z_d)), with I = E[log q(z|x) - log q(z)], TC = E[log q(z) - sum_d log
    q(z_d)] and the last E[sum_d log q(z_d) - log p(z)]; q(z) and q(z_d) are mixtures over all N. As each draw's own
    posterior is one of the N, I cannot exceed ln N, and what it lacks near there stands in TC, which is too high.

    Args:
        posteriors: q(z|x) of the sentences, diagonal Gaussians, batch by batch.
        prior: p(z).
        z: (S, N, D); the first draw enters.
        at_most: average over so many sentences evenly spaced in the set.

    Returns:
        Nats a sentence.

    Raises:
        UserError: posteriors that are no diagonal Gaussians, no sentence, or draws of another number of sentences.

    References:
        Chen 2018, arXiv 1802.04942, equation 2; Hoffman & Johnson 2016.
    """
    count = check_draws(posteriors, z)
    mean, scale = _gaussians(posteriors, "the decomposition of the KL")
    chosen = torch.arange(min(at_most, count), device=z.device) * count // min(at_most, count)
    rows = float64(z[0, chosen])  # (M, D)
    own = _log_normal(rows, mean[chosen], scale[chosen]).sum(-1)
    joint = aggregate_log_prob(posteriors, z[0, chosen])
    marginal = torch.empty_like(rows)
    step = max(1, PAIRS_AT_ONCE // (count * rows.shape[1]))
    for begin in range(0, len(rows), step):
        pairs = _log_normal(rows[begin : begin + step, None], mean, scale)  # (rows, N, D)
        marginal[begin : begin + step] = pairs.logsumexp(1) - math.log(count)
    log_prior = float64(prior.log_prob(z[0, chosen]))
    gaussian = gaussian_parameters(prior)
    by_dimension = None
    if gaussian is not None:
        by_dimension = (marginal - _log_normal(rows, *map(float64, gaussian))).mean(0).tolist()
    product = marginal.sum(-1)
    return Decomposition(
        float((own - joint).mean()),
        float((joint - product).mean()),
        float((product - log_prior).mean()),
        math.log(count),
        by_dimension,
    )


def aggregate_log_prob(posteriors: Sequence[Distribution], z: Tensor, *, every: int = 1) -> Tensor:
    """Returns log q(z) = log (1/N) sum_j q(z|x_j), (M,) float64 nats, for z (M, D).

    Args:
        posteriors: q(z|x) of N sentences, batch by batch.
        z: (M, D).
        every: only every so many-th sentence, from the first on, stands for q; N is their number.
    """
    gaussian = _joined(posteriors)
    if gaussian is None:
        return _aggregate_by_log_prob(posteriors, z, every)
    mean, scale = (part[::every] for part in gaussian)
    count, dimensions = mean.shape
    # Centred, so that the squares below cancel as little as they can.
    centre = mean.mean(0)
    mean, z = mean - centre, float64(z) - centre
    # log N(z; m, s^2) is linear in (z, z^2): one matrix product instead of M x N x D differences.
    precision = scale.square().reciprocal()  # (N, D)
    coefficients = torch.cat([mean * precision, -0.5 * precision], -1).T.contiguous()  # (2D, N)
    constant = -0.5 * (mean.square() * precision).sum(-1) - scale.log().sum(-1)  # (N,)
    constant -= 0.5 * dimensions * math.log(2 * math.pi)
    rows = max(1, PAIRS_AT_ONCE // count)
    parts = []
    for begin in range(0, len(z), rows):
        some = z[begin : begin + rows]
        pairs = torch.addmm(constant, torch.cat([some, some.square()], -1), coefficients)  # (rows, N)
        parts.append(torch.logsumexp(pairs, -1))
    return torch.cat(parts) - math.log(count)


def _aggregate_by_log_prob(posteriors: Sequence[Distribution], z: Tensor, every: int) -> Tensor:
    sizes = [_size(posterior) for posterior in posteriors]
    # A flow keeps some hundred numbers a pair and dimension while it is asked.
    rows = max(1, PAIRS_AT_ONCE // (16 * max(sizes) * z.shape[-1]))
    parts = []
    for begin in range(0, len(z), rows):
        some = z[begin : begin + rows, None]  # (rows, 1, D)
        pairs = [float64(q.log_prob(some.expand(-1, size, -1))) for q, size in zip(posteriors, sizes)]
        parts.append(torch.logsumexp(torch.cat(pairs, -1)[:, ::every], -1))
    return torch.cat(parts) - math.log(-(-sum(sizes) // every))


def _own_log_prob(posteriors: Sequence[Distribution], z: Tensor) -> Tensor:
    """(S, N) float64 log q(z_i | x_i)."""
    sizes = [_size(posterior) for posterior in posteriors]
    if sum(sizes) != z.shape[1]:
        raise ValueError(f"z: got draws for {z.shape[1]} sentences, and the posteriors are of {sum(sizes)}")
    gaussian = _joined(posteriors)
    if gaussian is not None:
        mean, scale = gaussian
        standardized = (float64(z) - mean) / scale
        return -(0.5 * standardized.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
    ends = itertools.accumulate(sizes)
    parts = [float64(q.log_prob(z[:, end - size : end])) for q, size, end in zip(posteriors, sizes, ends)]
    return torch.cat(parts, -1)


def kl_by_dimension(posteriors: Sequence[Distribution], prior: Distribution) -> Tensor | None:
    """Returns E_x KL(q(z_d|x) || p(z_d)), (D,) float64 nats, for diagonal Gaussians; None for anything else."""
    parts = [divergences.kl_by_dimension(posterior, prior) for posterior in posteriors]
    known = [float64(part) for part in parts if part is not None]
    return torch.cat(known).mean(0) if known and len(known) == len(parts) else None


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Returns how many dimensions of the posterior mean vary from sentence to sentence: Var_x(E[z_d|x]) > threshold.

    Args:
        means: (N, D) posterior means.
        threshold: on the variance, latent units squared: a hundredth of the variance of a standard normal prior.

    References:
        Burda 2016, arXiv 1509.00519, section 5.2.
    """
    if len(means) < 2:
        return 0
    return int((float64(means).var(0) > threshold).sum())


def gaussian_parameters(posterior: Distribution) -> tuple[Tensor, Tensor] | None:
    """Returns mean and scale, (B, D) each, of a diagonal Gaussian; None for anything else."""
    base = posterior.base_dist if isinstance(posterior, Independent) else None
    return (base.loc, base.scale) if isinstance(base, Normal) else None


def check_draws(posteriors: Sequence[Distribution], z: Tensor, *, points: bool = False) -> int:
    """Returns N, the number of sentences.

    Raises:
        UserError: no sentence, z not (S, N, D), or points, which have no density, where not allowed.
    """
    if not posteriors:
        raise UserError("there is no sentence to evaluate")
    if not points and any(isinstance(posterior, Point) for posterior in posteriors):
        raise UserError("a point posterior (a plain autoencoder) has no density; MMD and sliced distance need none")
    count = sum(posterior.batch_shape[0] for posterior in posteriors)
    if z.dim() != 3 or z.shape[1] != count:
        raise UserError(f"z: got shape {tuple(z.shape)}; it must be (S, {count}, D), as the posteriors' sentences")
    return count


def float64(tensor: Tensor) -> Tensor:
    """Returns the tensor in double precision, on its device where the device has that (Apple's has not)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _joined(posteriors: Sequence[Distribution]) -> tuple[Tensor, Tensor] | None:
    """Mean and scale, (N, D) float64 each, where every posterior is a diagonal Gaussian."""
    parameters = [gaussian_parameters(posterior) for posterior in posteriors]
    known = [pair for pair in parameters if pair is not None]
    if not known or len(known) < len(parameters):
        return None
    mean, scale = (torch.cat(column) for column in zip(*known))
    return float64(mean), float64(scale)


def _gaussians(posteriors: Sequence[Distribution], what: str) -> tuple[Tensor, Tensor]:
    pairs = []
    for posterior in posteriors:
        found = gaussian_parameters(posterior)
        if found is None:
            raise UserError(f"{what} needs diagonal Gaussian posteriors; the posterior is {shown(posterior)}")
        pairs.append(found)
    mean, scale = (float64(torch.cat(column)) for column in zip(*pairs))
    return mean, scale


def _log_normal(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((z - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def _size(posterior: Distribution) -> int:
    return posterior.batch_shape[0]
