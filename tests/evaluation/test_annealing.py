"""Annealed importance sampling and refined posteriors on the linear-Gaussian model, whose figures are exact."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from textvae.errors import UserError
from textvae.evaluation.annealing import ais_nll, amortisation_gap, refine
from textvae.evaluation.bounds import iw_nll
from textvae.latent.posteriors import GaussianPosterior
from textvae.latent.priors import StandardNormal
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.encoders import RecurrentEncoder
from textvae.nets.output import SoftmaxOutput
from textvae.text.batching import collate
from textvae.text.noise import WordDropout
from textvae.types import Batch

LOADINGS = torch.tensor([[1.0, 0.4], [-0.5, 1.2], [0.3, 0.8]], dtype=torch.float64)  # (P, D), W
NOISE = 0.7
PRECISION = torch.eye(2, dtype=torch.float64) + LOADINGS.T @ LOADINGS / NOISE**2  # of the exact posterior


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale), 1)


def exact_posterior(x: Tensor) -> MultivariateNormal:
    covariance = torch.linalg.inv(PRECISION)
    return MultivariateNormal(x @ LOADINGS @ covariance / NOISE**2, covariance.expand(len(x), 2, 2))


def exact_nll(x: Tensor) -> Tensor:
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    return -MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)


def wrong(x: Tensor) -> Distribution:
    """Shifted and too narrow: importance sampling from it fails."""
    return diagonal(exact_posterior(x).mean + torch.tensor([0.9, -0.8]), torch.tensor([0.3, 0.3]).double())


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x = W z + s e; row i of `table` is what token i says."""

    latent_dim = 2

    def __init__(self, table: Tensor, posterior=wrong) -> None:
        super().__init__()
        self.table, self.chosen = table, posterior
        self.loadings = nn.Parameter(LOADINGS.clone())
        self.prior = lambda: diagonal(torch.zeros(2).double(), torch.ones(2).double())

    def encode(self, batch: Batch) -> Distribution:
        return self.chosen(self.table[batch.tokens[:, 1]])

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        return Normal(z @ self.loadings.T, NOISE).log_prob(self.table[batch.tokens[:, 1]]).sum(-1)


def observations(count: int) -> Tensor:
    normal = torch.randn(count, 5, generator=seeded(12345), dtype=torch.float64)
    return normal[:, :2] @ LOADINGS.T + NOISE * normal[:, 2:]


def rows(count: int, size: int | None = None) -> list[Batch]:
    tokens = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], 1)
    return [Batch(part, torch.ones(len(part), dtype=torch.int64)) for part in tokens.split(size or count)]


def loss_of(q: Distribution, x: Tensor) -> Tensor:
    """KL(q || exact posterior): what the ELBO loses."""
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), exact_posterior(x))


# ---- annealed importance sampling


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_the_annealed_nll_is_the_exact_one(start):
    x = observations(200)
    found = ais_nll(
        LinearGaussian(x), rows(200, 90), samples=8, temperatures=150, warm_up=30, start=start, generator=seeded(0)
    )
    error = found.nll - exact_nll(x)
    assert found.standard_error.median() < 0.15
    bias = float(found.standard_error.square().mean()) / 2  # of the logarithm, to second order
    assert abs(float(error.mean()) - bias) < 4 * float(error.std()) / math.sqrt(200)
    assert (error.abs() < 6 * found.standard_error + 0.1).all()
    assert 0.5 < float(found.acceptance.mean()) < 0.95
    assert (found.effective_samples <= 8 + 1e-9).all()
    assert float(found.effective_samples.mean()) > 6.5
    assert found.tokens.eq(1).all()


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_the_mean_weight_is_the_likelihood_however_few_the_temperatures(start):
    # Only transitions that keep their distribution exactly give this at five temperatures.
    x = observations(1).expand(4000, -1)
    found = ais_nll(
        LinearGaussian(x, lambda x: diagonal(exact_posterior(x).mean + 0.4, torch.full((2,), 0.8).double())),
        rows(4000),
        samples=1,
        temperatures=5,
        warm_up=15,
        start=start,
        generator=seeded(1),
    )
    weight = torch.exp(exact_nll(x) - found.nll)  # over the exact likelihood
    error = float(weight.std()) / math.sqrt(4000)
    assert error < 0.04
    assert abs(float(weight.mean()) - 1) < 4 * error
    assert found.standard_error.isnan().all()


def test_chunks_change_nothing_and_the_model_is_left_as_it_was():
    x = observations(12)
    model = LinearGaussian(x).train()
    options = {"samples": 3, "temperatures": 6, "warm_up": 4}
    whole = ais_nll(model, rows(12, 5), **options, generator=seeded(3))
    found = ais_nll(model, rows(12, 5), **options, generator=seeded(3), batch_tokens=1)
    for a, b in zip(found, whole):
        torch.testing.assert_close(a, b)
    other = ais_nll(model, rows(12, 5), **options, generator=seeded(4))
    assert not torch.allclose(other.nll, whole.nll)
    assert model.training
    assert model.loadings.requires_grad
    assert model.loadings.grad is None


def test_one_temperature_is_importance_sampling():
    x = observations(3000)
    model = LinearGaussian(
        x, lambda x: diagonal(exact_posterior(x).mean, PRECISION.diagonal().rsqrt().expand(len(x), 2))
    )
    found = ais_nll(model, rows(3000), samples=1, temperatures=1, warm_up=1, generator=seeded(0))
    assert found.acceptance.isnan().all()
    # With one draw that is the ELBO.
    error = found.nll - exact_nll(x) - loss_of(model.chosen(x), x)
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(3000)


def test_a_sequence_model_has_the_same_nll_by_annealing_as_by_many_importance_samples():
    torch.manual_seed(0)
    encoder = RecurrentEncoder(4, cell="gru", hidden_dim=5)
    model = SequenceVAE(
        latent_dim=2,
        encoder_embedding=nn.Embedding(9, 4),
        encoder=encoder,
        posterior=GaussianPosterior(encoder.feature_dim, 2),
        prior=StandardNormal(2),
        decoder_embedding=nn.Embedding(9, 4),
        decoder=RecurrentDecoder(4, 2, cell="lstm", hidden_dim=6),
        output=SoftmaxOutput(6, 9),
        word_dropout=WordDropout(0.5, 3),
    ).double()
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *model.output.parameters()]:
            parameter *= 4
    batch = collate([[1, 5, 6, 7, 2], [1, 2], [1, 8, 3, 3, 4, 5, 2], [1, 6, 2]], 0)
    weighted = iw_nll(model, [batch], samples=20_000, generator=seeded(0))
    for start in ("posterior", "prior"):
        found = ais_nll(model, [batch], samples=60, temperatures=15, warm_up=10, start=start, generator=seeded(1))
        error = (found.standard_error.square() + weighted.standard_error.square()).sqrt()
        assert error.max() < 0.1
        assert ((found.nll - weighted.nll).abs() < 4 * error).all()
    refined = refine(model, batch, steps=60, held_out=300, generator=seeded(2))
    assert (refined.gap > -4 * refined.standard_error).all()
    assert (refined.nll - weighted.nll > -0.1).all()
    assert model.training
    assert model.word_dropout.training


# ---- refined posteriors


def test_refining_finds_the_best_diagonal_gaussian_and_its_gain():
    x = observations(40)
    model = LinearGaussian(x)
    found = refine(model, rows(40)[0], steps=250, lr=0.1, samples=8, held_out=400, generator=seeded(0))
    # The diagonal Gaussian nearest in KL has the exact mean and the diagonal of the exact precision.
    best = diagonal(exact_posterior(x).mean, PRECISION.diagonal().rsqrt().expand(40, 2))
    assert (found.posterior.mean - best.mean).abs().max() < 0.1
    assert (found.posterior.stddev / best.stddev - 1).abs().max() < 0.12
    expected = loss_of(wrong(x), x) - loss_of(best, x)
    assert float(expected.min()) > 0.5
    assert ((found.gap - expected).abs() < 5 * found.standard_error + 0.03).all()
    torch.testing.assert_close(found.nll.mean(), (exact_nll(x) + loss_of(best, x)).mean(), rtol=0, atol=0.05)
    assert model.loadings.grad is None


def test_refining_stays_within_the_scales_of_the_family():
    """The gap is the encoder's, not the price of a family that has no wider posterior (delta-VAE)."""
    x = observations(40)
    widest = float(PRECISION.diagonal().rsqrt().min()) * 0.7
    model = LinearGaussian(x, lambda x: diagonal(exact_posterior(x).mean, torch.full((40, 2), 0.8 * widest).double()))
    model.posterior = SimpleNamespace(scale_bounds=(0.1 * widest, widest))
    found = refine(model, rows(40)[0], steps=200, lr=0.1, samples=8, held_out=400, generator=seeded(0))
    # Of means and scales apart, the best scale of a dimension is the nearest to the best of all.
    best = diagonal(exact_posterior(x).mean, torch.full((40, 2), widest).double())
    expected = loss_of(diagonal(exact_posterior(x).mean, torch.full((40, 2), 0.8 * widest).double()), x)
    expected = expected - loss_of(best, x)
    torch.testing.assert_close(found.posterior.stddev, best.stddev, rtol=1e-6, atol=0)
    assert ((found.gap - expected).abs() < 5 * found.standard_error + 0.03).all()


def test_the_best_posterior_has_no_gap():
    x = observations(25)
    model = LinearGaussian(x, lambda x: diagonal(exact_posterior(x).mean, PRECISION.diagonal().rsqrt().expand(25, 2)))
    gap = amortisation_gap(LinearGaussian(x, model.chosen), rows(25), steps=50, lr=0.02, generator=seeded(0))
    assert gap.shape == (25,)
    assert abs(float(gap.mean())) < 0.02


# ---- errors


def test_bad_input_is_named():
    x = observations(3)
    full = LinearGaussian(x, exact_posterior)
    for call in (lambda: ais_nll(full, rows(3)), lambda: refine(full, rows(3)[0])):
        with pytest.raises(UserError, match="diagonal Gaussian posterior; the posterior is MultivariateNormal"):
            call()
    model = LinearGaussian(x)
    with pytest.raises(UserError, match="there is no sentence"):
        ais_nll(model, [])
    with pytest.raises(UserError, match="there is no sentence"):
        amortisation_gap(model, [])
    with pytest.raises(UserError, match="temperatures: got 0"):
        ais_nll(model, rows(3), temperatures=0)
    with pytest.raises(UserError, match="start: got 'middle'"):
        ais_nll(model, rows(3), start="middle")
    with pytest.raises(UserError, match="lr: got -1"):
        refine(model, rows(3)[0], lr=-1)
    model.latent_dim = 0
    with pytest.raises(UserError, match="language model"):
        ais_nll(model, rows(3))
