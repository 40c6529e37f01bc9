"""How the aggregate posterior q(z) = (1/N) sum_j q(z|x_j) of a whole set lies to the prior."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from textvae.errors import UserError
from textvae.evaluation import bounds, latents
from textvae.evaluation.latents import aggregate_log_prob, float64
from textvae.latent import wasserstein

GROUPS = 10  # of rows, each left out once: how a distance that is no mean over rows shows its error
FLOORS = 4  # pairs of sets of prior draws, whose mean distance is what equal distributions give
BLOCK = 500  # rows of one MMD; the mean over blocks is unbiased too, and their spread its error


class Distance(NamedTuple):
    """A distance of the aggregate posterior's draws to as many of the prior."""

    value: float
    standard_error: float | None  # over sentences and draws of the prior; None where there are too few to show one
    at_equality: float  # what equal distributions give in expectation


class Holes(NamedTuple):
    """How much of the prior lies where the aggregate posterior is thin."""

    share: float  # 0 to 1
    expected: float  # of equal distributions: percentile / 100
    log_density: float  # the threshold, log q(z) nats


class Coverage(NamedTuple):
    """Prior draws (what is decoded) against aggregate draws (what the decoder was trained on)."""

    density: float  # 0 upwards, 1 of equal distributions
    coverage: float  # 0 to 1
    expected: float  # coverage of equal distributions


def mmd(z: Tensor, prior: Distribution, *, generator: torch.Generator | None = None) -> Distance:
    """Estimates the squared MMD (inverse multiquadratics, as `latent.wasserstein.MMD`) of draws to the prior.

    Unbiased: 0 in expectation at q = p, and below 0 at times. The mean over blocks of up to 500 rows.

    Args:
        z: (N, D), one draw a sentence.
        prior: p(z).
        generator: of the prior's draws.

    Returns:
        In kernel units, 0 to about 14; the error from the blocks' spread.

    Raises:
        UserError: fewer than 2 sentences.

    References:
        Gretton 2012 (JMLR 13); Tolstikhin 2018, arXiv 1711.01558; Zaremba 2013, arXiv 1307.1954 (blocks).
    """
    z = _rows(z, 2, "MMD")
    p = _prior_draws(prior, z, generator)
    blocks = max(1, len(z) // BLOCK)
    kernel = wasserstein.MMD(kernel="imq")._kernel
    order = torch.randperm(len(z), generator=generator, device=z.device)  # sentences come sorted by length

    pairs = zip(z[order].tensor_split(blocks), p.tensor_split(blocks))
    variance = wasserstein.total_variance(prior)
    found = torch.stack([wasserstein.mmd(a, b, kernel, variance) for a, b in pairs])
    error = float(found.std()) / math.sqrt(blocks) if blocks > 1 else None
    return Distance(float(found.mean()), error, 0.0)


def sliced_wasserstein(
    z: Tensor, prior: Distribution, *, projections: int = 256, generator: torch.Generator | None = None
) -> Distance:
    """Estimates the squared sliced 2-Wasserstein distance of draws to the prior.

    mean over directions of mean_i (sort(theta . z)_i - sort(theta . p)_i)^2; of N(m, I) to N(0, I) it is |m|^2 / D.
    Biased above 0 at q = p by O(1/N): `at_equality` is the mean over four pairs of sets of prior draws.

    Args:
        z: (N, D), one draw a sentence.
        prior: p(z).
        projections: directions, uniform on the sphere.
        generator: of directions and of the prior's draws.

    Returns:
        In latent units squared; the error is that of sentences and prior draws (a jackknife over ten groups of
        both, too large by half or so near q = p) and of the directions.

    Raises:
        UserError: fewer than 2 sentences or directions.

    References:
        Bonneel 2015 (JMIV 51); Kolouri 2018, arXiv 1804.01947; Efron & Stein 1981 (Annals of Statistics 9).
    """
    z = _rows(z, 2, "the sliced Wasserstein distance")
    if projections < 2:
        raise UserError(f"projections: got {projections}; at least 2 are needed")
    p, *others = (_prior_draws(prior, z, generator) for _ in range(FLOORS + 1))
    normal = torch.randn(z.shape[1], projections, generator=generator, device=z.device, dtype=z.dtype)
    directions = torch.nn.functional.normalize(normal, dim=0)
    each = wasserstein.sliced(z, p, directions, 2)
    floors = [wasserstein.sliced(a, b, directions, 2).mean() for a, b in itertools.pairwise((p, *others))]
    error = None
    if len(z) >= 2 * GROUPS:
        # Sentences come sorted by length: a group must be like the whole.
        group = torch.randperm(len(z), generator=generator, device=z.device) % GROUPS
        left = [wasserstein.sliced(z[group != i], p[group != i], directions, 2).mean() for i in range(GROUPS)]
        of_rows = (GROUPS - 1) * float(torch.stack(left).var(unbiased=False))
        error = math.sqrt(of_rows + float(each.var()) / projections)
    return Distance(float(each.mean()), error, float(torch.stack(floors).mean()))


def holes(
    posteriors: Sequence[Distribution],
    prior: Distribution,
    z: Tensor,
    *,
    percentile: float = 5.0,
    at_most: int = 4000,
    generator: torch.Generator | None = None,
) -> Holes:
    """Returns the share of prior draws in holes of the aggregate posterior.

    A hole is where log q(z) lies below the percentile of log q at q's own held-out draws: q is of every second
    sentence, the draws are those of the others. Of equal distributions the share is percentile / 100; much above
    it, samples are decoded from where the decoder was not trained. Below it, the prior stays in q's middle.

    Args:
        posteriors: q(z|x), batch by batch.
        prior: p(z).
        z: (S, N, D); the first draw enters.
        percentile: between 0 and 100.
        at_most: draws of the prior, and of q.
        generator: of the prior's draws.

    Raises:
        UserError: fewer than 4 sentences, a point posterior, or a percentile out of range.

    References:
        Rezende & Viola 2018, arXiv 1810.00597 (holes); Bauer & Mnih 2019, arXiv 1810.11428.
    """
    if not 0 < percentile < 100:
        raise UserError(f"percentile: got {percentile}; it must lie between 0 and 100")
    latents.check_draws(posteriors, z)
    rows = _rows(z[0], 4, "holes")
    own = rows[1::2]
    own = own[torch.arange(min(at_most, len(own)), device=own.device) * len(own) // min(at_most, len(own))]
    drawn = bounds.draw(prior, min(at_most, len(rows)), generator).to(rows.dtype)
    threshold = torch.quantile(aggregate_log_prob(posteriors, own, every=2), percentile / 100)
    share = (aggregate_log_prob(posteriors, drawn, every=2) < threshold).double().mean()
    return Holes(float(share), percentile / 100, float(threshold))


def density_and_coverage(
    z: Tensor,
    prior: Distribution,
    *,
    neighbours: int = 5,
    at_most: int = 2000,
    generator: torch.Generator | None = None,
) -> Coverage:
    """Returns density and coverage of prior draws among aggregate draws, by k-nearest-neighbour balls.

    density = (1/kM) sum_j #{i: p_j in ball_i}, coverage = (1/M) #{i: some p_j in ball_i}, ball_i around the
    aggregate's draw z_i with the distance to its k-th neighbour as radius. Low coverage: the prior misses part of
    the aggregate; low density: prior draws lie outside it. Of equal distributions the density is 1 and the coverage
    1 - (M-1)..(M-k) / (2M-1)..(2M-k), about 1 - 2^-k.

    Args:
        z: (N, D), one draw a sentence.
        prior: p(z).
        neighbours: k, below M.
        at_most: M, draws of either.
        generator: of the prior's draws.

    Raises:
        UserError: no more than k sentences.

    References:
        Naeem 2020, arXiv 2002.09797, equations 3, 4 and 9.
    """
    if neighbours < 1:
        raise UserError(f"neighbours: got {neighbours}; at least 1 is needed")
    z = _rows(z, neighbours + 1, f"density and coverage with {neighbours} neighbours")
    count = min(len(z), at_most)
    if count <= neighbours:
        raise UserError(f"at_most: got {at_most}; it must be above the number of neighbours, {neighbours}")
    z = float64(z[torch.arange(count, device=z.device) * len(z) // count])
    p = float64(_prior_draws(prior, z, generator))
    mode = "donot_use_mm_for_euclid_dist"  # products lose the small distances
    radius = torch.cdist(z, z, compute_mode=mode).kthvalue(neighbours + 1, 1).values  # the nearest is itself
    inside = torch.cdist(z, p, compute_mode=mode) < radius[:, None]  # (M, M)
    missed = math.prod((count - i) / (2 * count - i) for i in range(1, neighbours + 1))
    density = float(inside.sum()) / (neighbours * count)
    return Coverage(density, float(inside.any(1).double().mean()), 1 - missed)


def figures(
    posteriors: Sequence[Distribution],
    prior: Distribution,
    z: Tensor,
    *,
    fitted: Distribution | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Returns the figures of this file, per-batch information and the parts of the KL, under flat names.

    What has no value is None, and `aggregate_missing` (absent where all is there) says why.

    Args:
        posteriors: q(z|x) of the sentences, batch by batch.
        prior: p(z).
        z: (S, N, D); the first draw of each sentence enters.
        fitted: a prior that samples are drawn from in the place of p(z); distances to it are `fitted_aggregate_...`.
        generator: of all draws.

    Raises:
        UserError: no sentence, or draws of another number of sentences.
    """
    result: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def add(names: dict[str, str], compute: Callable[[], Any]) -> None:
        try:
            found = compute()
        except UserError as error:
            missing[next(iter(names))] = str(error)
            found = None
        result.update({name: None if found is None else getattr(found, field) for name, field in names.items()})

    latents.check_draws(posteriors, z, points=True)
    with torch.no_grad():
        names = {"batch_mutual_information": "nats", "batch_mutual_information_ceiling": "ceiling"}
        add(names, lambda: latents.batch_mutual_information(posteriors, z))
        names = {
            "kl_part_mutual_information": "mutual_information",
            "kl_part_total_correlation": "total_correlation",
            "kl_part_dimensions": "dimension_kl",
            "kl_part_mutual_information_ceiling": "ceiling",
            "marginal_kl_by_dimension": "by_dimension",
        }
        add(names, lambda: latents.decompose(posteriors, prior, z))
        held = {"": prior} if fitted is None else {"": prior, "fitted_": fitted}
        for of, p in held.items():
            for name, distance in (("mmd", mmd), ("sliced_wasserstein", sliced_wasserstein)):
                name = f"{of}aggregate_{name}"
                names = {name: "value", f"{name}_standard_error": "standard_error", f"{name}_expected": "at_equality"}
                add(names, functools.partial(distance, z[0], p, generator=generator))
            names = {f"{of}aggregate_holes": "share", f"{of}aggregate_holes_expected": "expected"}
            add(names, functools.partial(holes, posteriors, p, z, generator=generator))
            names = {f"{of}aggregate_density": "density", f"{of}aggregate_coverage": "coverage"}
            names[f"{of}aggregate_coverage_expected"] = "expected"
            add(names, functools.partial(density_and_coverage, z[0], p, generator=generator))
    return {**result, "aggregate_missing": missing} if missing else result


def _rows(z: Tensor, at_least: int, what: str) -> Tensor:
    if z.dim() != 2 or len(z) < at_least:
        raise UserError(f"{what}: got draws of shape {tuple(z.shape)}; (N, D) with N at least {at_least} is needed")
    return z


def _prior_draws(prior: Distribution, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return bounds.draw(prior, len(like), generator).to(like)
