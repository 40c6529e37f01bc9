"""Figures of the latents against closed forms, quadrature and torch's own distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from textvae.evaluation import latents
from textvae.evaluation.latents import active_units, aggregate_log_prob, kl_by_dimension, mutual_information

COUNT, DIMENSIONS = 50, 3


def diagonal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale), 1)


def full(mean: Tensor, scale: Tensor) -> Distribution:
    """The same Gaussian in a form that is not known to be diagonal."""
    return MultivariateNormal(mean, scale_tril=torch.diag_embed(scale))


def random_posteriors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 5 + torch.randn(COUNT, DIMENSIONS, generator=generator, dtype=torch.float64)
    return mean, 0.2 + torch.rand(COUNT, DIMENSIONS, generator=generator, dtype=torch.float64)


def draws(mean: Tensor, scale: Tensor, samples: int, seed: int = 99) -> Tensor:
    noise = torch.randn(samples, *mean.shape, generator=torch.Generator().manual_seed(seed), dtype=mean.dtype)
    return mean + scale * noise


def in_batches(mean: Tensor, scale: Tensor, kind=diagonal) -> list[Distribution]:
    """Batches of unequal size."""
    sizes = [1, 20, len(mean) - 21]
    return [kind(m, s) for m, s in zip(mean.split(sizes), scale.split(sizes))]


def mixture(mean: Tensor, scale: Tensor) -> Distribution:
    return MixtureSameFamily(Categorical(torch.ones(len(mean)).double()), diagonal(mean, scale))


# ---- mutual information


def test_posteriors_far_apart_tell_the_sentence_exactly():
    mean = 1000.0 * torch.arange(COUNT, dtype=torch.float64)[:, None].expand(-1, DIMENSIONS)
    scale = torch.ones_like(mean)
    for kind in (diagonal, full):
        found = mutual_information(in_batches(mean, scale, kind), draws(mean, scale, 2))
        assert found.nats == pytest.approx(math.log(COUNT), abs=1e-6)
        assert found.ceiling == pytest.approx(math.log(COUNT))


def test_equal_posteriors_tell_nothing():
    mean, scale = (t[:1].expand(COUNT, -1) for t in random_posteriors())
    for kind in (diagonal, full):
        assert mutual_information(in_batches(mean, scale, kind), draws(mean, scale, 2)).nats == pytest.approx(
            0, abs=1e-9
        )


def test_pairs_of_equal_posteriors_tell_the_pair():
    # Ten far-apart pairs: ln 20 less the bit that says which of the two.
    mean = 1000.0 * (torch.arange(20, dtype=torch.float64) // 2)[:, None]
    found = mutual_information([diagonal(mean, torch.ones_like(mean))], draws(mean, torch.ones_like(mean), 1))
    assert found.nats == pytest.approx(math.log(10), abs=1e-6)


def test_mutual_information_of_a_mixture_is_that_of_quadrature():
    mean = torch.tensor([[-1.0], [0.2], [0.9]], dtype=torch.float64)
    scale = torch.tensor([[0.5], [0.3], [1.1]], dtype=torch.float64)
    axis = np.linspace(-12, 12, 20_001)
    m, s = mean.numpy(), scale.numpy()
    q = np.exp(-0.5 * ((axis - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))  # (3, M)
    ratio = np.log(q + 1e-300) - np.log(q.mean(0) + 1e-300)
    exact = np.trapezoid((q * ratio).mean(0), axis)
    variance = np.trapezoid((q * ratio**2).mean(0), axis) - exact**2

    samples = 20_000
    error = math.sqrt(variance / (3 * samples))
    found = mutual_information([diagonal(mean, scale)], draws(mean, scale, samples))
    assert error < 0.005
    assert found.nats == pytest.approx(exact, abs=4 * error)
    assert 0.3 < exact < math.log(3) - 0.3


def test_mutual_information_of_a_gaussian_channel_is_its_capacity():
    # x ~ N(0, 1), z = x + s e: I = ln(1 + 1/s^2) / 2, and log q(z|x) / q(z) has a variance below 1.
    count, s = 4000, 0.35
    mean = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.full_like(mean, s)
    found = mutual_information(in_batches(mean, scale), draws(mean, scale, 1))
    assert found.nats == pytest.approx(0.5 * math.log(1 + 1 / s**2), abs=4 / math.sqrt(count))
    assert found.ceiling == pytest.approx(math.log(count))


def test_the_whole_set_passes_the_ceiling_that_batches_of_32_have():
    mean = torch.randn(640, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.full_like(mean, 0.05)
    z = draws(mean, scale, 1)
    batches = [[diagonal(m, s)] for m, s in zip(mean.split(32), scale.split(32))]
    by_batch = [mutual_information(batch, some).nats for batch, some in zip(batches, z.split(32, 1))]
    whole = mutual_information([posterior for batch in batches for posterior in batch], z)
    assert max(by_batch) <= math.log(32) + 1e-9
    assert math.log(32) + 1 < whole.nats <= whole.ceiling == pytest.approx(math.log(640))


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("kind", [diagonal, full])
def test_mutual_information_is_the_mean_of_own_over_aggregate_log_density(kind, samples):
    mean, scale = random_posteriors()
    z = draws(mean, scale, samples)
    expected = (diagonal(mean, scale).log_prob(z) - mixture(mean, scale).log_prob(z)).mean()
    assert mutual_information(in_batches(mean, scale, kind), z).nats == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("kind", [diagonal, full])
@pytest.mark.parametrize("at_most", [1, 5, 7, 49, 50, 1000])
def test_an_average_over_some_sentences_keeps_the_aggregate_of_all(at_most, kind):
    mean, scale = random_posteriors()
    z = draws(mean, scale, 2)
    ratio = diagonal(mean, scale).log_prob(z) - mixture(mean, scale).log_prob(z)  # (S, N)
    chosen = {1: [0], 5: [0, 10, 20, 30, 40], 7: [0, 7, 14, 21, 28, 35, 42], 49: list(range(49))}
    rows = chosen.get(at_most, list(range(COUNT)))
    found = mutual_information(in_batches(mean, scale, kind), z, at_most=at_most)
    assert found.nats == pytest.approx(float(ratio[:, rows].mean()), abs=1e-10)
    assert found.ceiling == pytest.approx(math.log(COUNT))


def test_draws_of_another_number_of_sentences_are_refused():
    mean, scale = random_posteriors()
    with pytest.raises(ValueError, match="draws for 49 sentences, and the posteriors are of 50"):
        mutual_information(in_batches(mean, scale), draws(mean, scale, 1)[:, 1:])


# ---- the aggregate posterior


@pytest.mark.parametrize("pairs", [1, 170, 2**22])
@pytest.mark.parametrize("kind", [diagonal, full])
def test_the_aggregate_posterior_is_torchs_mixture_however_many_pairs_are_held(kind, pairs, monkeypatch):
    monkeypatch.setattr(latents, "PAIRS_AT_ONCE", pairs)
    mean, scale = random_posteriors()
    z = draws(mean, scale, 1).flatten(0, 1)
    z = torch.cat([z, z + 30])  # near and very far
    found = aggregate_log_prob(in_batches(mean, scale, kind), z)
    torch.testing.assert_close(found, mixture(mean, scale).log_prob(z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1e-4), (1000.0, 0.001)])
def test_narrow_posteriors_far_from_the_origin_cost_no_digits_that_matter(offset, scale):
    mean, _ = random_posteriors()
    mean = (mean + offset).float()  # as a model gives them
    scales = torch.full_like(mean, scale)
    z = draws(mean, scales, 1)[0]
    expected = mixture(mean.double(), scales.double()).log_prob(z.double())
    found = aggregate_log_prob([diagonal(mean, scales)], z)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_mixed_set_of_posteriors_goes_by_log_prob():
    mean, scale = random_posteriors()
    z = draws(mean, scale, 1)
    mixed = [diagonal(mean[:30], scale[:30]), full(mean[30:], scale[30:])]
    expected = mutual_information(in_batches(mean, scale), z).nats
    assert mutual_information(mixed, z).nats == pytest.approx(expected, abs=1e-10)


# ---- active units and the KL by dimension


def test_a_unit_is_active_where_the_unbiased_variance_of_its_mean_is_above_a_hundredth():
    normal = np.random.default_rng(0).normal(size=(10, 6))
    unit = (normal - normal.mean(0)) / normal.std(0, ddof=1)
    # The biased variance of 0.0105 over ten sentences is 0.00945.
    variances = np.array([0.0, 0.0095, 0.0099, 0.0101, 0.0105, 1.0])
    means = torch.from_numpy(unit * np.sqrt(variances) + 3)
    assert active_units(means) == 3
    assert active_units(means, threshold=0.5) == 1
    assert active_units(means, threshold=0.0098) == 4
    assert active_units(means[:, :3]) == 0


def test_a_mean_far_from_the_origin_makes_no_unit_active():
    spread = 0.09 * torch.tensor([-1.0, 1.0]).repeat(500)[:, None] + 4000  # variance 0.0081
    assert active_units(spread.float()) == 0
    assert active_units((spread + 0.03 * (spread - 4000) / 0.09).float()) == 1  # 0.0144


def test_one_sentence_has_no_active_unit():
    assert active_units(torch.randn(1, 4)) == 0


def test_kl_by_dimension_is_the_mean_of_torchs_over_all_sentences():
    mean, scale = random_posteriors()
    prior_mean, prior_scale = torch.tensor([4.0, 5.0, 0.0]).double(), torch.tensor([1.0, 0.5, 3.0]).double()
    found = kl_by_dimension(in_batches(mean, scale), diagonal(prior_mean, prior_scale))
    torch.testing.assert_close(found, torch_kl(Normal(mean, scale), Normal(prior_mean, prior_scale)).mean(0))
    total = torch_kl(diagonal(mean, scale), diagonal(prior_mean, prior_scale)).mean()
    torch.testing.assert_close(found.sum(), total)


def test_kl_by_dimension_is_none_where_a_distribution_is_no_diagonal_gaussian():
    mean, scale = random_posteriors()
    prior = (torch.zeros(DIMENSIONS).double(), torch.ones(DIMENSIONS).double())
    assert kl_by_dimension(in_batches(mean, scale, full), diagonal(*prior)) is None
    assert kl_by_dimension(in_batches(mean, scale), full(*prior)) is None
    assert kl_by_dimension([diagonal(mean, scale), full(mean, scale)], diagonal(*prior)) is None
