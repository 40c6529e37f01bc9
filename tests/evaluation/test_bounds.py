"""The bounds on models whose likelihood is known: in closed form, or by quadrature over the latent plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from textvae.errors import UserError
from textvae.evaluation import bounds
from textvae.evaluation.bounds import elbo, evaluating, iw_nll, perplexity
from textvae.latent.posteriors import GaussianPosterior, sample
from textvae.latent.priors import StandardNormal
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.encoders import RecurrentEncoder
from textvae.nets.output import SoftmaxOutput
from textvae.text.batching import collate
from textvae.text.noise import WordDropout
from textvae.types import Batch

VOCABULARY = 9
SENTENCES = [[1, 5, 6, 7, 2], [1, 2], [1, 8, 3, 3, 4, 5, 2], [1, 6, 2]]
LOADINGS = torch.tensor([[1.0, 0.4], [-0.5, 1.2], [0.3, 0.8]], dtype=torch.float64)  # (P, D), W
NOISE = 0.7  # s


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale), 1)


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x = W z + s e: its marginal and posterior are Gaussian. Row i of `table` is what token i says."""

    latent_dim = 2

    def __init__(self, table: Tensor, posterior: Callable[[Tensor], Distribution], prior: Distribution) -> None:
        super().__init__()
        self.table, self.posterior, self.prior = table, posterior, lambda: prior

    def encode(self, batch: Batch) -> Distribution:
        return self.posterior(self.table[batch.tokens[:, 1]])

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        return Normal(z @ LOADINGS.T, NOISE).log_prob(self.table[batch.tokens[:, 1]]).sum(-1)


UNIT = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
# The same distribution, in a form whose KL to a MultivariateNormal torch does not know: it is then sampled.
UNIT_DIAGONAL = diagonal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))


def exact_posterior(x: Tensor) -> MultivariateNormal:
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + LOADINGS.T @ LOADINGS / NOISE**2)
    return MultivariateNormal(x @ LOADINGS @ covariance / NOISE**2, covariance.expand(len(x), 2, 2))


def wrong_posterior(x: Tensor) -> Distribution:
    return diagonal(exact_posterior(x).mean + torch.tensor([0.4, -0.3]), torch.tensor([0.7, 0.8]).double())


def exact_nll(x: Tensor) -> Tensor:
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    return -MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)


def gap(x: Tensor) -> Tensor:
    """KL(q || exact posterior) of the wrong posterior: what the ELBO loses."""
    q = wrong_posterior(x)
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), exact_posterior(x))


def observations(count: int) -> Tensor:
    # Of a seed that no test draws z with: draws equal to the sentences' own would not be independent of them.
    normal = torch.randn(count, 5, generator=seeded(12345), dtype=torch.float64)
    return normal[:, :2] @ LOADINGS.T + NOISE * normal[:, 2:]


def rows(count: int, size: int | None = None) -> list[Batch]:
    """Sentences of one token, numbers 0, 1, ..: batches of `size`."""
    tokens = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], 1)
    return [Batch(part, torch.ones(len(part), dtype=torch.int64)) for part in tokens.split(size or count)]


def assert_mean(values: Tensor, expected: float, *, at_most: float) -> None:
    """The mean is the expected one within 4 standard errors, and those are small enough to tell."""
    error = float(values.std()) / math.sqrt(len(values))
    assert error < at_most
    assert abs(float(values.mean()) - expected) < 4 * error


def small_model(latent_dim: int = 2, *, word_dropout: float = 0.0) -> SequenceVAE:
    """Weights large enough that z matters much; a posterior wide enough that importance weights have a variance."""
    torch.manual_seed(0)
    parts = {}
    if latent_dim:
        encoder = RecurrentEncoder(4, cell="gru", hidden_dim=5, bidirectional=True)
        parts = {
            "encoder_embedding": nn.Embedding(VOCABULARY, 4),
            "encoder": encoder,
            "posterior": GaussianPosterior(encoder.feature_dim, latent_dim),
            "prior": StandardNormal(latent_dim),
            "draw": sample,
        }
    model = SequenceVAE(
        latent_dim=latent_dim,
        decoder_embedding=nn.Embedding(VOCABULARY, 4),
        decoder=RecurrentDecoder(4, latent_dim, cell="lstm", hidden_dim=6),
        output=SoftmaxOutput(6, VOCABULARY),
        word_dropout=WordDropout(word_dropout, 3),
        **parts,
    ).double()
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *model.output.parameters()]:
            parameter *= 3
        if latent_dim:
            model.posterior.head.weight[:latent_dim] *= 3
            model.posterior.head.bias[latent_dim:] += 0.5
    return model


# ---- against quadrature


def test_the_importance_weighted_nll_of_a_sequence_model_is_that_of_quadrature_over_the_plane():
    model, batch = small_model(), collate(SENTENCES, 0)
    axis = torch.linspace(-6.4, 6.4, 81, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)  # (M, 2)
    with torch.no_grad():
        log_likelihood = model.log_likelihood(batch, plane[:, None].expand(-1, len(SENTENCES), -1))  # (M, B)
    log_prior = -0.5 * plane.square().sum(-1) - math.log(2 * math.pi)
    joint = (log_likelihood + log_prior[:, None]).unflatten(0, (81, 81)).exp()  # p(x, z) on the grid
    exact = -torch.log(joint.sum((0, 1)) * 0.16**2)
    coarse = -torch.log(joint[::2, ::2].sum((0, 1)) * 0.32**2)
    torch.testing.assert_close(exact, coarse, rtol=0, atol=1e-4)  # the grid is fine enough

    found = iw_nll(model, [batch], samples=10_000, generator=seeded(0))
    assert found.standard_error.max() < 0.03
    assert ((found.nll - exact).abs() < 4 * found.standard_error).all()
    # z matters: without it, and by the ELBO, the figures are others.
    at_origin = -log_likelihood[log_prior.argmax()]
    assert ((at_origin - exact).abs() > 8 * found.standard_error).all()
    assert (elbo(model, [batch], samples=1000, generator=seeded(1)).nll - exact).min() > 0.05
    assert found.tokens.tolist() == [4, 1, 6, 2]


def test_a_language_model_has_its_exact_nll_either_way():
    model, batch = small_model(0), collate(SENTENCES, 0)
    expected = -model.log_likelihood(batch, torch.zeros(1, 4, 0, dtype=torch.float64))[0].detach()
    bound, weighted = elbo(model, [batch]), iw_nll(model, [batch], samples=3)
    for nll in (bound.nll, bound.reconstruction, weighted.nll):
        torch.testing.assert_close(nll, expected)
    assert not bound.kl.any()
    assert not weighted.standard_error.any()
    assert weighted.effective_samples.eq(3).all()


# ---- against the linear-Gaussian model


def test_with_the_exact_posterior_one_draw_gives_the_exact_likelihood_where_the_kl_is_of_the_same_draw():
    x = observations(50)
    found = elbo(LinearGaussian(x, exact_posterior, UNIT_DIAGONAL), rows(50, 7), generator=seeded(0))
    torch.testing.assert_close(found.nll, exact_nll(x))


def test_with_the_exact_posterior_the_elbo_is_the_exact_likelihood_in_expectation():
    x = observations(3000)
    found = elbo(LinearGaussian(x, exact_posterior, UNIT), rows(3000), generator=seeded(0), samples=8)
    torch.testing.assert_close(found.kl, kl_divergence(exact_posterior(x), UNIT))
    assert_mean(found.nll - exact_nll(x), 0.0, at_most=0.01)


def test_the_elbo_loses_the_kl_to_the_exact_posterior():
    x = observations(3000)
    found = elbo(LinearGaussian(x, wrong_posterior, UNIT_DIAGONAL), rows(3000), generator=seeded(0), samples=8)
    assert float(gap(x).min()) > 0.5
    assert_mean(found.nll - exact_nll(x) - gap(x), 0.0, at_most=0.03)


@pytest.mark.parametrize("samples", [1, 2, 37])
@pytest.mark.parametrize("prior", [UNIT, UNIT_DIAGONAL], ids=["full", "diagonal"])
def test_with_the_exact_posterior_every_importance_weight_is_the_exact_likelihood(samples, prior):
    x = observations(20)
    found = iw_nll(LinearGaussian(x, exact_posterior, prior), rows(20, 6), samples=samples, generator=seeded(0))
    torch.testing.assert_close(found.nll, exact_nll(x))
    torch.testing.assert_close(found.effective_samples, torch.full_like(found.nll, samples))
    if samples == 1:
        assert found.standard_error.isnan().all()
    else:
        assert found.standard_error.max() < 1e-9


def test_the_importance_weighted_bound_falls_from_the_elbo_to_the_exact_likelihood():
    x = observations(4000)
    model, exact = LinearGaussian(x, wrong_posterior, UNIT_DIAGONAL), exact_nll(x)
    bound = {s: iw_nll(model, rows(4000), samples=s, generator=seeded(s)).nll - exact for s in (1, 2, 5, 20, 300)}
    assert_mean(bound[1] - gap(x), 0.0, at_most=0.05)  # one sample is the ELBO
    for few, more in zip(bound.values(), list(bound.values())[1:]):
        difference = few - more
        assert float(difference.mean()) > 4 * float(difference.std()) / math.sqrt(len(x))
    last = bound[300]
    assert float(last.mean()) > -4 * float(last.std()) / math.sqrt(len(x))
    assert float(last.mean()) < 0.01


def test_standard_error_and_effective_samples_are_those_of_repeated_estimates():
    x = observations(1).expand(3000, -1)  # one sentence, estimated 3000 times
    samples = 300
    found = iw_nll(LinearGaussian(x, wrong_posterior, UNIT_DIAGONAL), rows(3000), samples=samples, generator=seeded(0))
    spread = float(found.nll.std())
    # A standard deviation of 3000 estimates is known to 1 in sqrt(2 * 3000).
    assert float(found.standard_error.square().mean().sqrt()) == pytest.approx(spread, rel=4 / math.sqrt(6000) + 0.03)
    # E w^2 / (E w)^2 = int p(z|x)^2 / q(z|x) dz, by quadrature; the estimate's variance is that less 1, over S.
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    offsets = torch.cartesian_prod(axis, axis)
    p, q = exact_posterior(x[:1]), wrong_posterior(x[:1])
    plane = (p.mean + offsets)[:, None]
    second = (2 * p.log_prob(plane) - q.log_prob(plane)).exp().sum() * float(axis[1] - axis[0]) ** 2
    assert second > 1.5
    assert spread == pytest.approx(math.sqrt((float(second) - 1) / samples), rel=4 / math.sqrt(6000) + 0.03)
    assert float(found.effective_samples.mean()) == pytest.approx(samples / float(second), rel=0.03)


# ---- batches, chunks, padding, seeds


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 50, 96, 10**7])
def test_the_chunks_size_changes_nothing(batch_tokens, gaussian):
    if gaussian:
        model, batches = small_model(), [collate(SENTENCES, 0), collate(SENTENCES[::-1], 0)]
    else:
        # Exactly scored by any draw it would tell nothing: the posterior is shifted.
        def shifted(x: Tensor) -> Distribution:
            exact = exact_posterior(x)
            return MultivariateNormal(exact.mean + 0.3, exact.covariance_matrix)

        model, batches = LinearGaussian(observations(24), shifted, UNIT), rows(24, 12)
    whole = iw_nll(model, batches, samples=23, generator=seeded(3))
    found = iw_nll(model, batches, samples=23, generator=seeded(3), batch_tokens=batch_tokens)
    for name in found._fields:
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    other = iw_nll(model, batches, samples=23, generator=seeded(4), batch_tokens=batch_tokens)
    assert not torch.allclose(other.nll, whole.nll, rtol=1e-3)


def test_no_more_tokens_are_worked_on_at_once_than_asked():
    model, batch, seen = small_model(), collate(SENTENCES, 0), []
    score = model.log_likelihood
    model.log_likelihood = lambda batch, z: seen.append(z.shape[0] * batch.targets.numel()) or score(batch, z)
    iw_nll(model, [batch], samples=10, batch_tokens=100)
    assert max(seen) <= 100
    assert sum(seen) == 10 * int(batch.lengths.sum())  # a sentence at a time: no padding


def test_results_stand_in_the_order_of_the_sentences():
    x = observations(30)
    model = LinearGaussian(x, exact_posterior, UNIT_DIAGONAL)
    order = torch.randperm(30, generator=seeded(0))
    for size in (1, 7, 30):
        shuffled = [Batch(*parts) for parts in zip(*(column[order].split(size) for column in rows(30)[0]))]
        for bound in (elbo, iw_nll):
            torch.testing.assert_close(bound(model, rows(30, size)).nll, exact_nll(x))
            torch.testing.assert_close(bound(model, shuffled).nll, exact_nll(x)[order])


def test_padding_changes_nothing():
    model, batch = small_model(), collate(SENTENCES, 0)
    wide = Batch(torch.cat([batch.tokens, torch.full((4, 5), 0)], 1), batch.lengths)
    for bound in (elbo, iw_nll):
        plain, padded = (bound(model, [b], generator=seeded(0), samples=20) for b in (batch, wide))
        for name in plain._fields:
            torch.testing.assert_close(getattr(padded, name), getattr(plain, name))


@pytest.mark.parametrize("posterior", [exact_posterior, wrong_posterior])
def test_draws_follow_their_generator_and_leave_the_global_one_alone(posterior):
    q = posterior(observations(5))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = bounds.draw(q, 2000, seeded(1)), bounds.draw(q, 2000, seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    generator = seeded(1)
    assert not torch.equal(bounds.draw(q, 2000, generator), bounds.draw(q, 2000, generator))
    assert not torch.equal(bounds.draw(q, 3, None), bounds.draw(q, 3, None))
    error = (q.variance / 2000).sqrt()
    assert ((first.mean(0) - q.mean).abs() < 4 * error).all()
    assert ((first.var(0) / q.variance - 1).abs() < 4 * math.sqrt(2 / 2000)).all()


def test_a_model_in_training_is_scored_without_its_noise_and_goes_on_training():
    model, batch = small_model(word_dropout=0.5).train(), collate(SENTENCES, 0)
    model.decoder.eval()
    plain = elbo(small_model(), [batch], generator=seeded(0))
    found = elbo(model, [batch], generator=seeded(0))
    torch.testing.assert_close(found.nll, plain.nll)
    assert model.training
    assert model.word_dropout.training
    assert not model.decoder.training

    def fail() -> None:
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyError

    with pytest.raises(KeyError), evaluating(model):
        fail()
    assert model.training
    assert model.word_dropout.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("bound", [elbo, iw_nll])
def test_no_sentence_is_an_error_and_so_is_no_sample(bound):
    with pytest.raises(UserError, match="there is no sentence to evaluate"):
        bound(small_model(), [])
    with pytest.raises(ValueError, match="samples: got 0"):
        bound(small_model(), [collate(SENTENCES, 0)], samples=0)


# ---- perplexity


def test_perplexity_of_the_published_penn_treebank_figure():
    # 3761 sentences of 82 430 target tokens: 102.10 nats a sentence is the published 105.48.
    assert perplexity(102.10 * 3761, 21.917 * 3761) == pytest.approx(105.48, abs=0.005)


def test_perplexity_of_even_odds_is_the_number_of_choices():
    assert perplexity(12 * math.log(7), 12) == pytest.approx(7)
    assert perplexity(0.0, 3) == 1.0


@pytest.mark.parametrize(("nats", "expected"), [(1e6, math.inf), (math.inf, math.inf), (699.0, math.exp(699.0))])
def test_perplexity_never_overflows(nats, expected):
    assert perplexity(nats, 1) == pytest.approx(expected)


def test_perplexity_of_no_number_is_none_and_of_no_token_an_error():
    assert math.isnan(perplexity(math.nan, 3))
    with pytest.raises(ValueError, match="needs target tokens"):
        perplexity(1.0, 0)
