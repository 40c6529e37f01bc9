"""Divergences against quadrature, sampling and closed forms."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from textvae.errors import TrainingError
from textvae.latent.divergences import (
    DIVERGENCES,
    KL,
    Jeffreys,
    RateFloor,
    Renyi,
    ReverseKL,
    kl,
    kl_by_dimension,
    reverse_kl,
)
from textvae.latent.posteriors import GaussianPosterior, sample
from textvae.latent.priors import MixturePrior, StandardNormal
from textvae.registry import takes_positional


def gaussian(mean, scale) -> Independent:
    return Independent(Normal(torch.as_tensor(mean).double(), torch.as_tensor(scale).double()), 1)


MEANS = [[0.3, -1.2, 0.0], [2.0, 0.0, 0.5]]
SCALES = [[0.5, 1.5, 1.0], [0.2, 1.0, 3.0]]


def standard(dimensions: int) -> Independent:
    return gaussian([0.0] * dimensions, [1.0] * dimensions)


def test_kl_by_dimension_equals_quadrature():
    got = kl_by_dimension(gaussian(MEANS, SCALES), gaussian([0.1, 0.0, -0.4], [1.0, 2.0, 0.7]))
    for row, (means, scales) in enumerate(zip(MEANS, SCALES)):
        for d, (mean, scale) in enumerate(zip(means, scales)):
            q, p = stats.norm(mean, scale), stats.norm([0.1, 0.0, -0.4][d], [1.0, 2.0, 0.7][d])
            reach = (mean - 12 * scale, mean + 12 * scale)
            expected, _ = integrate.quad(lambda x, q=q, p=p: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *reach)
            assert float(got[row, d]) == pytest.approx(expected, rel=1e-6)


def test_sampled_kl_stands_in_for_a_mixture_and_agrees_with_the_closed_form():
    # A mixture of two equal components is a Gaussian, which torch does not know.
    torch.manual_seed(0)
    posterior = gaussian(MEANS, SCALES)
    components = Independent(Normal(torch.zeros(2, 3).double(), torch.ones(2, 3).double()), 1)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2).double()), components)
    z = posterior.rsample(torch.Size([40_000]))
    exact = kl(posterior, standard(3), z)
    terms = posterior.log_prob(z) - mixture.log_prob(z)
    error = terms.std(0) / math.sqrt(len(z))
    assert ((kl(posterior, mixture, z) - exact).abs() < 4 * error).all()


def test_free_bits_by_dimension_floor_the_batch_mean_and_stop_its_gradient():
    posterior = gaussian([[0.1, 3.0], [-0.1, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    mean = posterior.base_dist.loc.requires_grad_()
    z = posterior.rsample(torch.Size([1]))
    value = KL(free_nats=4.0, free_per="dimension")(posterior, standard(2), z)
    # KL of N(m, 1) is m^2 / 2: dimension 0 has mean 0.005, under 4 / 2; dimension 1 has (4.5 + 0.5) / 2.
    assert float(value.detach()) == pytest.approx(2.0 + 2.5)
    (gradient,) = torch.autograd.grad(value, mean)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.5], [0.0, 0.5]]).double())


def test_free_bits_by_sentence_floor_each_sentence():
    posterior = gaussian([[0.1, 0.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    value = KL(free_nats=2.0, free_per="sentence")(posterior, standard(2), posterior.sample(torch.Size([1])))
    torch.testing.assert_close(value, torch.tensor([2.0, 5.0]).double())


@pytest.mark.parametrize(("free_nats", "expected", "flows"), [(2.0, 2.5025, True), (3.0, 3.0, False)])
def test_free_bits_by_batch_floor_the_mean_over_sentences(free_nats, expected, flows):
    # KLs of 0.005 and 5 nats: each |mean|^2 / 2.
    mean = torch.tensor([[0.1, 0.0], [3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    posterior = Independent(Normal(mean, torch.ones_like(mean)), 1)
    value = KL(free_nats=free_nats, free_per="batch")(posterior, standard(2), mean[None])
    torch.testing.assert_close(value, torch.tensor(expected).double())
    (gradient,) = torch.autograd.grad(value, mean)
    assert bool(gradient.abs().sum() > 0) == flows


@pytest.mark.parametrize("free_per", ["sentence", "batch"])
def test_free_bits_hold_a_kl_without_a_closed_form_too(free_per):
    """A mixture of one component is N(0, I), whose KL has no closed form here: nothing but the term moves q."""
    torch.manual_seed(0)
    one = MixtureSameFamily(Categorical(torch.ones(1)), Independent(Normal(torch.zeros(1, 16), torch.ones(1, 16)), 1))
    mean, log_scale = torch.randn(32, 16, requires_grad=True), torch.full((32, 16), -0.5, requires_grad=True)
    optimizer = torch.optim.SGD([mean, log_scale], lr=0.2)
    term = KL(free_nats=5.0, free_per=free_per)
    for _ in range(400):
        posterior = Independent(Normal(mean, log_scale.exp()), 1)
        value = term(posterior, one, sample(posterior, 1)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    exact = kl_by_dimension(posterior, standard(16)).sum(-1).mean()
    assert float(value.detach()) == pytest.approx(5.0, abs=0.3)
    assert 4.3 < float(exact.detach()) < 5.5  # by one draw's maximum it is 2.3


def numeric(integrand, q, p) -> float:
    lowest, highest = (f(q.mean() + s * 14 * q.std(), p.mean() + s * 14 * p.std()) for f, s in ((min, -1), (max, 1)))
    points = sorted([q.mean(), p.mean()])
    value, _ = integrate.quad(lambda x: integrand(x, q, p), lowest, highest, points=points, limit=500)
    return value


def kl_integrand(x, q, p):
    return q.pdf(x) * (q.logpdf(x) - p.logpdf(x))


PRIOR = ([0.1, 0.0, -0.4], [1.0, 2.0, 1.7])


@pytest.mark.parametrize(
    ("divergence", "by_quadrature"),
    [
        (ReverseKL(), lambda q, p: numeric(kl_integrand, p, q)),
        (Jeffreys(), lambda q, p: numeric(kl_integrand, q, p) + numeric(kl_integrand, p, q)),
        *[
            (
                Renyi(alpha=alpha),
                lambda q, p, alpha=alpha: (
                    math.log(numeric(lambda x, q, p: math.exp(alpha * q.logpdf(x) + (1 - alpha) * p.logpdf(x)), q, p))
                    / (alpha - 1)
                ),
            )
            for alpha in (0.2, 0.5, 1.2)
        ],
    ],
)
def test_closed_forms_equal_quadrature(divergence, by_quadrature):
    got = divergence(gaussian(MEANS, SCALES), gaussian(*PRIOR), torch.zeros(1, 2, 3))
    for row, (means, scales) in enumerate(zip(MEANS, SCALES)):
        pairs = zip(means, scales, *PRIOR)
        expected = sum(by_quadrature(stats.norm(m, s), stats.norm(n, t)) for m, s, n, t in pairs)
        assert float(got[row]) == pytest.approx(expected, rel=1e-6)


def test_renyi_near_one_is_the_kl():
    posterior, prior, z = gaussian(MEANS, SCALES), gaussian(*PRIOR), torch.zeros(1, 2, 3)
    for alpha, rel in ((1.0, 1e-12), (1 - 1e-6, 1e-4), (1 + 1e-6, 1e-4)):
        torch.testing.assert_close(Renyi(alpha=alpha)(posterior, prior, z), kl(posterior, prior, z), rtol=rel, atol=0)


def test_renyi_says_where_it_is_infinite_or_has_no_closed_form():
    wide, z = gaussian([[0.0]], [[1.5]]), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"alpha 2 is infinite.* = 2 times the prior's\. Use an alpha of at most 1"):
        Renyi(alpha=2.0)(wide, standard(1), z)
    with pytest.raises(TrainingError):  # a line in the shell, not a traceback
        Renyi(alpha=2.0)(wide, standard(1), z)
    assert torch.isfinite(Renyi(alpha=1.7)(wide, standard(1), z)).all()
    components = Independent(Normal(torch.zeros(2, 1), torch.ones(2, 1)), 1)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2)), components)
    with pytest.raises(ValueError, match="the prior is MixtureSameFamily"):
        Renyi()(wide, mixture, z)


def test_sampled_reverse_kl_stands_in_for_a_mixture_and_agrees_with_the_closed_form():
    torch.manual_seed(0)
    posterior = gaussian(MEANS, [[0.8, 1.5, 1.0], [0.9, 1.0, 3.0]])
    components = Independent(Normal(torch.zeros(2, 3).double(), torch.ones(2, 3).double()), 1)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2).double()), components)
    exact = reverse_kl(posterior, standard(3), torch.zeros(1, 2, 3))
    draws = torch.stack([reverse_kl(posterior, mixture, torch.zeros(400, 2, 3)) for _ in range(50)])
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / math.sqrt(50)).all()


def test_a_mixture_learns_from_the_reverse_kl_what_quadrature_says():
    torch.manual_seed(0)
    means, logits = torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.3, -0.2]).double()
    log_scales = torch.tensor([0.1, -0.4]).double()
    parameters = [tensor.requires_grad_() for tensor in (means, log_scales, logits)]

    def mixture():
        components = Independent(Normal(means[:, None], log_scales.exp()[:, None]), 1)
        return MixtureSameFamily(Categorical(logits=logits), components)

    posterior = gaussian([[0.3], [-0.5]], [[1.2], [0.9]])
    at = torch.linspace(-12, 12, 4001).double()
    log_p, log_q = mixture().log_prob(at[:, None])[:, None], posterior.log_prob(at[:, None, None])  # (N, 1), (N, 2)
    exact = torch.trapezoid(log_p.exp() * (log_p - log_q), at, dim=0).sum()
    expected = torch.autograd.grad(exact, parameters)
    found = [
        torch.cat(torch.autograd.grad(reverse_kl(posterior, mixture(), torch.zeros(500, 2, 1)).sum(), parameters))
        for _ in range(200)
    ]
    draws = torch.stack(found)
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < 0.1 * torch.cat(expected).abs()).all()  # else nothing would be shown
    assert ((draws.mean(0) - torch.cat(expected)).abs() < 4 * error).all()


def test_rate_floor_holds_the_mean_rate_or_each():
    # KL of N(m, 1) is m^2 / 2: 0.5 and 4.5, with mean 2.5.
    posterior = gaussian([[1.0], [3.0]], [[1.0], [1.0]])
    z = posterior.sample(torch.Size([1]))
    assert float(RateFloor(nats=3.0)(posterior, standard(1), z)) == pytest.approx(0.5)
    got = RateFloor(nats=3.0, per="sentence")(posterior, standard(1), z)
    torch.testing.assert_close(got, torch.tensor([2.5, 1.5]).double())


# Options that make a term 0 at q = p where its defaults do not.
ZERO = {"rate_floor": {"nats": 0.0}, "dispersion": {"target": 0.0}}
# Above 0 at q = p by an error that falls with the batch, as their docstrings say.
BIASED = ["sliced_wasserstein", "max_sliced_wasserstein", "sinkhorn"]
# log 2 at q = p, once it has learnt (test_critics).
NEVER_ZERO = ["adversarial"]


def built(kind: str, **options):
    constructor = DIVERGENCES.resolve(kind)
    return DIVERGENCES.build({"kind": kind, **options}, *((4,) if takes_positional(constructor) else ()))


@pytest.mark.parametrize("kind", list(DIVERGENCES))
@pytest.mark.parametrize("sentences", [2, 8])
def test_every_divergence_conforms(kind, sentences):
    """Shape, unit, a finite value in the latents' precision, a finite gradient into the encoder."""
    torch.manual_seed(0)
    divergence = built(kind)
    head, prior = GaussianPosterior(6, 4), StandardNormal(4)
    posterior = head(torch.randn(sentences, 6))
    z = sample(posterior, 2)
    value = divergence(posterior, prior(), z)
    assert value.shape in (torch.Size([]), torch.Size([sentences]))
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    assert isinstance(divergence.unit, str)
    value.sum().backward()
    gradient = head.head.weight.grad
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_every_divergence_takes_a_batch_of_one_sentence(kind):
    torch.manual_seed(0)
    head = GaussianPosterior(6, 4)
    posterior = head(torch.randn(1, 6))
    value = built(kind)(posterior, StandardNormal(4)(), sample(posterior, 1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(head.head.weight.grad).all()


def at_equality(divergence, sentences: int, repeats: int) -> torch.Tensor:
    equal, prior = gaussian(torch.zeros(sentences, 4), torch.ones(sentences, 4)), StandardNormal(4)()
    with torch.no_grad():
        values = [
            divergence(equal, prior, equal.sample(torch.Size([1])).float()).mean().float() for _ in range(repeats)
        ]
    return torch.stack(values)


@pytest.mark.parametrize("kind", [kind for kind in DIVERGENCES if kind not in BIASED + NEVER_ZERO])
def test_every_unbiased_divergence_is_zero_at_equality_within_its_error(kind):
    torch.manual_seed(0)
    draws = at_equality(built(kind, **ZERO.get(kind, {})), 8, 200)
    assert abs(float(draws.mean())) <= 4 * float(draws.std()) / math.sqrt(200) + 1e-6


@pytest.mark.parametrize("kind", BIASED)
def test_every_biased_divergence_falls_with_the_batch_at_equality(kind):
    torch.manual_seed(0)
    divergence = built(kind)
    small, large = (float(at_equality(divergence, size, 5).mean()) for size in (16, 256))
    assert 0 < large < small / 4


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_every_kind_s_options_are_described(kind):
    """Each option has a default or is asked for, and stands in the docstring's Args."""
    constructor = DIVERGENCES.resolve(kind)
    for name in DIVERGENCES.options(kind).model_fields:
        assert f"        {name}: " in constructor.__doc__


def test_one_draw_of_a_prior_without_gradients_teaches_it_as_many_do():
    # Of p = N(m, 1), q = N(2, 1): KL(p || q) = (m - 2)^2 / 2, whose gradient at m = 0 is -2.
    torch.manual_seed(0)
    prior = MixturePrior(1, components=1)
    prior.start.zero_()
    posterior = Independent(Normal(torch.full((1, 1), 2.0), torch.ones(1, 1)), 1)
    total = torch.zeros(())
    for _ in range(3_000):
        nats = reverse_kl(posterior, prior(), torch.zeros(1, 1, 1))
        (gradient,) = torch.autograd.grad(nats.sum(), prior.offset)
        total += gradient.sum()
    assert float(total) / 3_000 == pytest.approx(-2, abs=0.25)
