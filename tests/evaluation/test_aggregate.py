"""The aggregate posterior's parts and distances against closed forms, and the parts of one KL against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from textvae.errors import UserError
from textvae.evaluation.aggregate import density_and_coverage, figures, holes, mmd, sliced_wasserstein
from textvae.evaluation.bounds import bits_per_character, counts, word_perplexity
from textvae.evaluation.intervals import bootstrap_means, confidence_interval
from textvae.evaluation.latents import batch_mutual_information, decompose, mutual_information
from textvae.latent.posteriors import Point, diagonal_gaussian


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale), 1)


def prior(dimensions: int) -> Distribution:
    return diagonal(torch.zeros(dimensions).double(), torch.ones(dimensions).double())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def population(count: int, dimensions: int = 2, spread: float = 0.8) -> tuple[list[Distribution], Tensor]:
    """Means N(0, spread^2), scales root(1 - spread^2): the aggregate is the prior. Two uneven batches, one draw."""
    mean = spread * normal(count, dimensions, seed=1)
    scale = torch.full_like(mean, math.sqrt(1 - spread**2))
    sizes = [count // 3, count - count // 3]
    return [diagonal(m, s) for m, s in zip(mean.split(sizes), scale.split(sizes))], (
        mean + scale * normal(count, dimensions, seed=2)
    )[None]


# ---- parts of the KL


def test_the_parts_add_up_to_the_kl_on_the_same_draws_and_are_those_of_the_gaussian_population():
    posteriors, z = population(3000)
    found = decompose(posteriors, prior(2), z, at_most=3000)
    q = diagonal(torch.cat([p.mean for p in posteriors]), torch.cat([p.stddev for p in posteriors]))
    whole = float((q.log_prob(z[0]) - prior(2).log_prob(z[0])).mean())
    parts = found.mutual_information + found.total_correlation + found.dimension_kl
    assert parts == pytest.approx(whole, abs=1e-9)
    exact = 2 * -0.5 * math.log(1 - 0.8**2)  # of jointly Gaussian (mean, z)
    assert found.mutual_information == pytest.approx(exact, abs=0.05)
    assert found.mutual_information == pytest.approx(mutual_information(posteriors, z).nats, abs=1e-9)
    assert abs(found.total_correlation) < 0.02
    assert abs(found.dimension_kl) < 0.02
    assert sum(found.by_dimension) == pytest.approx(found.dimension_kl, abs=1e-9)
    assert found.ceiling == pytest.approx(math.log(3000))
    few = decompose(posteriors, prior(2), z, at_most=500)
    assert few.mutual_information == pytest.approx(exact, abs=0.12)


def test_total_correlation_of_correlated_means_is_that_of_the_gaussian():
    # Means along the diagonal: the aggregate has covariance 1.5^2 + s^2 on, and 1.5^2 off, the diagonal.
    mean = 1.5 * normal(4000, 1).expand(-1, 2)
    scale = torch.full_like(mean, 0.5)
    found = decompose([diagonal(mean, scale)], prior(2), (mean + scale * normal(4000, 2, seed=3))[None])
    variance, shared = 1.5**2 + 0.25, 1.5**2
    assert found.total_correlation == pytest.approx(-0.5 * math.log(1 - (shared / variance) ** 2), abs=0.06)
    marginal = 0.5 * (variance - 1 - math.log(variance))
    assert found.by_dimension == pytest.approx([marginal, marginal], abs=0.12)


def test_batch_information_is_held_by_its_ceiling_and_is_that_of_brute_force():
    mean = 1000.0 * torch.arange(100).double()[:, None]
    far = [diagonal(m, torch.ones_like(m)) for m in mean.split([70, 30])]
    found = batch_mutual_information(far, mean[None])
    expected = (64 * math.log(32) + 6 * math.log(6) + 30 * math.log(30)) / 100
    assert found.ceiling == pytest.approx(expected)
    assert found.nats == pytest.approx(expected, abs=1e-9)

    posteriors, z = population(10)
    found = batch_mutual_information(posteriors, z, size=4)
    total, begin = 0.0, 0
    for q in posteriors:
        for first in range(0, q.batch_shape[0], 4):
            group = range(first, min(first + 4, q.batch_shape[0]))
            for i in group:
                own = [float(Normal(q.mean[j], q.stddev[j]).log_prob(z[0, begin + i]).sum()) for j in group]
                total += own[i - first] - math.log(sum(map(math.exp, own)) / len(own))
        begin += q.batch_shape[0]
    assert found.nats == pytest.approx(total / 10)


# ---- distance to the prior


def test_distances_are_null_at_the_prior_and_those_of_shifted_gaussians_elsewhere():
    same, shifted = normal(2000, 3), normal(2000, 3) + torch.tensor([2.0, 0.0, 1.0])
    near, far = (mmd(z, prior(3), generator=seeded(50)) for z in (same, shifted))
    assert abs(near.value) < 4 * near.standard_error + 0.005
    assert far.value > 20 * far.standard_error
    near, far = (sliced_wasserstein(z, prior(3), generator=seeded(50)) for z in (same, shifted))
    assert near.value < 0.02
    assert near.value == pytest.approx(near.at_equality, abs=0.01)
    assert far.value == pytest.approx(5 / 3, abs=4 * far.standard_error + 0.01)


def test_holes_are_the_percentile_at_the_prior_and_more_around_a_narrow_aggregate():
    posteriors, z = population(3000)
    found = holes(posteriors, prior(2), z, percentile=10, generator=seeded(50))
    assert found.share == pytest.approx(0.1, abs=4 * math.sqrt(2 * 0.09 / 1500))
    assert found.expected == pytest.approx(0.1)
    # All posteriors N(0, 0.3^2 I): prior draws with |z| beyond the 95 % radius r of that, P(|z| > r) = exp(-r^2 / 2).
    zero = torch.zeros(4000, 2).double()
    narrow = [diagonal(zero, zero + 0.3)]
    found = holes(narrow, prior(2), 0.3 * normal(1, 4000, 2), generator=seeded(50))
    radius_squared = -2 * 0.3**2 * math.log(0.05)
    assert found.share == pytest.approx(math.exp(-radius_squared / 2), abs=0.04)


@pytest.mark.parametrize("sizes", [[2000], [1300, 700]])
def test_holes_hold_out_sentences_also_of_other_posteriors_in_batches_that_are_unlike(sizes):
    """Batches stand in order of length, and latents know length: one is no sample of the other."""
    posteriors, z = population(2000)
    mean, variance = (torch.cat([getattr(q, name) for q in posteriors]) for name in ("mean", "variance"))
    order = mean[:, 0].argsort()
    mean, variance, z = mean[order].split(sizes), variance[order].split(sizes), z[:, order]
    full = [MultivariateNormal(m, torch.diag_embed(v)) for m, v in zip(mean, variance)]
    assert holes(full, prior(2), z, generator=seeded(50)).share == pytest.approx(0.05, abs=0.03)
    alike = [diagonal_gaussian(m, v.sqrt()) for m, v in zip(mean, variance)]
    exact = holes(alike, prior(2), z, generator=seeded(50))
    assert holes(full, prior(2), z, generator=seeded(50)).share == pytest.approx(exact.share, abs=1e-3)


def test_density_and_coverage_are_those_expected_at_the_prior_null_far_off_and_equal_to_brute_force():
    found = density_and_coverage(normal(1500, 3), prior(3), generator=seeded(50))
    assert found.density == pytest.approx(1, abs=0.08)
    assert found.coverage == pytest.approx(found.expected, abs=0.03)
    assert found.expected == pytest.approx(1 - 2**-5, abs=0.002)
    far = density_and_coverage(normal(300, 3) + 50, prior(3), generator=seeded(50))
    assert (far.density, far.coverage) == (0, 0)

    z, k = normal(30, 2), 3
    found = density_and_coverage(z, prior(2), neighbours=k, generator=seeded(7))
    p = torch.randn(30, 2, generator=seeded(7), dtype=torch.float64)
    balls = [sorted(math.dist(a, b) for b in z.tolist())[k] for a in z.tolist()]
    inside = [[math.dist(a, b) < r for b in p.tolist()] for a, r in zip(z.tolist(), balls)]
    assert found.density == pytest.approx(sum(map(sum, inside)) / (k * 30))
    assert found.coverage == pytest.approx(sum(map(any, inside)) / 30)


def test_distances_to_a_fitted_prior_stand_beside_those_to_the_models_own():
    posteriors, z = population(1000)
    far = diagonal(torch.full((2,), 3.0).double(), torch.ones(2).double())
    found = figures(posteriors, far, z, fitted=prior(2), generator=seeded(0))
    assert found["aggregate_sliced_wasserstein"] == pytest.approx(9.0, rel=0.1)  # |m|^2 / D
    assert found["fitted_aggregate_sliced_wasserstein"] == pytest.approx(0, abs=0.05)
    assert found["fitted_aggregate_holes"] == pytest.approx(0.05, abs=0.04)
    assert found["fitted_aggregate_coverage"] > 0.9 > 0.5 > found["aggregate_coverage"]
    assert not any(name.startswith("fitted") for name in figures(posteriors, far, z, generator=seeded(0)))


def test_all_figures_are_there_and_what_cannot_be_says_why():
    posteriors, z = population(300)
    found = figures(posteriors, prior(2), z, generator=seeded(50))
    assert "aggregate_missing" not in found
    numbers = [v for value in found.values() for v in (value if isinstance(value, list) else [value]) if v is not None]
    assert all(map(math.isfinite, numbers))
    assert found == figures(posteriors, prior(2), z, generator=seeded(50))

    one = figures([diagonal(torch.zeros(1, 2).double(), torch.ones(1, 2).double())], prior(2), normal(1, 1, 2))
    assert one["aggregate_mmd"] is None
    assert one["kl_part_mutual_information"] == pytest.approx(0)
    assert set(one["aggregate_missing"]) == {
        "aggregate_mmd",
        "aggregate_sliced_wasserstein",
        "aggregate_holes",
        "aggregate_density",
    }
    points = figures([Point(normal(50, 2))], prior(2), normal(50, 2)[None], generator=seeded(50))
    assert points["kl_part_dimensions"] is None
    assert points["aggregate_coverage"] > 0
    equal = figures([diagonal(torch.zeros(40, 2), torch.ones(40, 2))], prior(2), torch.zeros(1, 40, 2))
    assert all(map(math.isfinite, [v for v in equal.values() if isinstance(v, float)]))
    with pytest.raises(UserError, match="there is no sentence"):
        figures([], prior(2), z)
    with pytest.raises(UserError, match=r"z: got shape \(1, 300, 2\)"):
        figures(posteriors[:1], prior(2), z)


# ---- intervals and units


def test_intervals_hold_the_mean_as_often_as_they_say():
    normal_, bootstrap = 0, 0
    for seed in range(300):
        values = 3 + normal(60, seed=1000 + seed)
        low, high, _, _ = confidence_interval(values, method="normal", level=0.8)
        normal_ += low < 3 < high
        low, high, level, method = confidence_interval(values, level=0.8, resamples=150, generator=seeded(seed))
        bootstrap += low < 3 < high
    assert (level, method) == (0.8, "bootstrap")
    for hits in (normal_, bootstrap):
        assert hits / 300 == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 300))


def test_bad_intervals_are_named():
    for values, options, message in [
        (normal(1), {}, "at least 2 sentences"),
        (torch.tensor([1.0, math.nan]), {}, "finite"),
        (normal(5), {"level": 1.0}, "level: got 1.0"),
        (normal(5), {"method": "t"}, "method: got 't'"),
        (normal(5), {"resamples": 0}, "resamples: got 0"),
    ]:
        with pytest.raises(UserError, match=message):
            confidence_interval(values, **options)
    assert bootstrap_means(torch.ones(4, 2), 3).eq(1).all()


def test_units_are_those_of_a_coin_for_each_character_and_word():
    assert counts(["ab c", ""]) == (2 + 1 + 1, 4 + 1 + 1)
    assert bits_per_character(10 * math.log(2), 10) == pytest.approx(1)
    assert word_perplexity(4 * math.log(7), 4) == pytest.approx(7)
    with pytest.raises(UserError, match="characters"):
        bits_per_character(1, 0)
    with pytest.raises(UserError, match="words"):
        word_perplexity(1, 0)


@pytest.mark.parametrize(
    ("distance", "scale", "dimensions"),
    [
        *((mmd, 1.5, 4), (mmd, 1.0, 8)),
        *(pytest.param(sliced_wasserstein, *case, marks=pytest.mark.slow) for case in ((1.5, 4), (1.0, 8))),
    ],
)
def test_the_error_of_a_distance_is_its_spread_over_other_sentences_and_draws(distance, scale, dimensions):
    found = [
        distance(
            scale * torch.randn(1000, dimensions, generator=seeded(i)), prior(dimensions), generator=seeded(900 + i)
        )
        for i in range(40)
    ]
    spread = float(torch.tensor([one.value for one in found]).std())
    errors = torch.tensor([one.standard_error for one in found])
    # An error from ten groups, or two blocks, is itself a rough one: their root mean square is what must agree. At
    # equality a jackknife's is too large (Efron & Stein 1981), never too small.
    assert 0.6 < float(errors.square().mean().sqrt()) / spread < (2.5 if scale == 1.0 else 1.6)
    if scale == 1.0:
        mean = sum(one.value for one in found) / len(found)
        assert mean == pytest.approx(found[0].at_equality, abs=4 * spread / math.sqrt(len(found)) + spread)
