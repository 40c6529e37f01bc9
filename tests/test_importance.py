"""The importance-weighted bound on a linear-Gaussian model, where log p(x), its posterior and all gradients are known.

x = A z + c + N(0, sigma^2), z ~ N(0, I). The columns of A are orthogonal, so that the exact posterior is a diagonal
Gaussian like q(z|x), and q can be it.
"""

import math

import numpy as np
import pytest
import torch
from test_model import SENTENCES, noise, small_model
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from textvae.importance import ImportanceWeighted
from textvae.latent.divergences import Renyi
from textvae.latent.posteriors import Point
from textvae.objective import Objective
from textvae.text.batching import collate
from textvae.types import VAEOutput

ALPHAS = (0.0, 0.5)
X = torch.tensor([1.3, -0.4, 0.8], dtype=torch.float64)
PRIOR = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)


class Decoder:
    """p(x|z), with parameters A, c and log sigma."""

    def __init__(self) -> None:
        basis = torch.linalg.qr(torch.randn(3, 2, generator=torch.Generator().manual_seed(3)).double())[0]
        self.matrix = (basis * torch.tensor([1.5, 0.7])).double().requires_grad_()
        self.shift = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
        self.log_sigma = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
        self.parameters = [self.matrix, self.shift, self.log_sigma]

    def log_likelihood(self, z: Tensor) -> Tensor:
        return Independent(Normal(z @ self.matrix.T + self.shift, self.log_sigma.exp()), 1).log_prob(X)

    def marginal(self) -> float:
        covariance = self.matrix @ self.matrix.T + self.log_sigma.exp() ** 2 * torch.eye(3).double()
        return MultivariateNormal(self.shift, covariance).log_prob(X).item()

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and scale (D,) of p(z|x)."""
        variance = self.log_sigma.exp() ** 2
        scale = (1 + self.matrix.square().sum(0) / variance).rsqrt()
        return (scale.square() * (self.matrix.T @ (X - self.shift)) / variance).detach(), scale.detach()


DECODER = Decoder()
EXACT = DECODER.posterior()
# Wider than p(z|x) here, narrower there.
WRONG = (EXACT[0] + torch.tensor([0.3, -0.5]), EXACT[1] * torch.tensor([1.4, 0.8]))


def output_of(
    loc: Tensor, scale: Tensor, eps: Tensor, *, decoder: Decoder = DECODER, prior: Independent = PRIOR
) -> VAEOutput:
    z = loc + scale * eps
    decoded = z.view_as(z)
    return VAEOutput(Independent(Normal(loc, scale), 1), prior, z, decoder.log_likelihood(decoded), decoded)


def draws(samples: int, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_weights(output: VAEOutput) -> Tensor:
    return output.log_likelihood + output.prior.log_prob(output.z) - output.posterior.log_prob(output.z)


def naive(output: VAEOutput, alpha: float) -> Tensor:
    """The bound by the book, (B,)."""
    b = 1 - alpha
    return -((b * log_weights(output)).exp().mean(0).log() / b)


def encoder_gradients(start: tuple[Tensor, Tensor], eps: Tensor, loss) -> Tensor:
    """By mean and log scale, (B, 2D): each row has parameters of its own, so each is one draw of the estimator."""
    loc = start[0].expand(eps.shape[1], 2).clone().requires_grad_()
    log_scale = start[1].log().expand(eps.shape[1], 2).clone().requires_grad_()
    total = loss(output_of(loc, log_scale.exp(), eps)).sum()
    return torch.cat(torch.autograd.grad(total, [loc, log_scale]), -1)


def test_the_bound_rises_with_the_draws_from_the_elbo_to_the_exact_log_likelihood():
    truth, means = DECODER.marginal(), []
    for samples, rows in ((1, 8000), (4, 8000), (16, 8000), (8192, 30)):
        values = -ImportanceWeighted()(output_of(*WRONG, draws(samples, rows, samples))).detach()
        error = float(values.std() / math.sqrt(rows))
        means.append(float(values.mean()))
        assert means[-1] < truth + 4 * error
    assert means[0] < means[1] < means[2] < means[3]
    assert means[3] == pytest.approx(truth, abs=0.01)
    q, p = (Independent(Normal(*pair), 1) for pair in (WRONG, EXACT))
    assert means[0] == pytest.approx(truth - float(kl_divergence(q, p)), abs=0.1)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_with_many_draws_log_p_lacks_the_renyi_divergence_to_the_exact_posterior(alpha):
    q, p = (Independent(Normal(*pair), 1) for pair in (WRONG, EXACT))
    expected = DECODER.marginal() - float(Renyi(alpha=alpha)(q, p, None))
    values = -ImportanceWeighted(alpha=alpha)(output_of(*WRONG, draws(8192, 60))).detach()
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std() / math.sqrt(60)) + 1e-3)


@pytest.mark.parametrize("gradient", ["dreg", "reparameterized"])
def test_alpha_zero_is_the_log_of_the_mean_weight_and_alpha_near_one_the_elbo(gradient):
    output = output_of(*WRONG, draws(6, 5))
    weights = log_weights(output).detach().numpy()
    by_hand = -np.log(np.exp(weights).sum(0) / 6)
    bound = ImportanceWeighted(gradient=gradient)(output)
    assert bound.shape == (5,)
    np.testing.assert_allclose(bound.detach(), by_hand, rtol=1e-12)
    near = ImportanceWeighted(alpha=1 - 1e-7, gradient=gradient)(output_of(*WRONG, draws(6, 5)))
    np.testing.assert_allclose(near.detach(), -weights.mean(0), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("gradient", ["dreg", "reparameterized"])
def test_one_draw_gives_the_negative_elbo_of_that_draw(alpha, gradient):
    output = output_of(*WRONG, draws(1, 5))
    bound = ImportanceWeighted(alpha=alpha, gradient=gradient)(output)
    torch.testing.assert_close(bound, -log_weights(output)[0])


def test_weights_that_float32_cannot_hold_do_no_harm():
    q = Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1)
    log_likelihood = torch.tensor([[-9000.0], [-10.0], [-400.0]], requires_grad=True)
    bound = ImportanceWeighted()(VAEOutput(q, q, torch.zeros(3, 1, 2), log_likelihood))
    torch.testing.assert_close(bound, torch.tensor([10 + math.log(3)]))
    bound.sum().backward()
    torch.testing.assert_close(log_likelihood.grad, torch.tensor([[0.0], [-1.0], [0.0]]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gradient", ["dreg", "reparameterized"])
def test_decoder_and_prior_get_the_gradient_of_the_bound_as_it_stands(alpha, gradient):
    decoder = Decoder()
    learned = [torch.tensor([0.1, -0.2]).double().requires_grad_(), torch.tensor([1.2, 0.9]).double().requires_grad_()]
    parameters = [*decoder.parameters, *learned]

    def gradients(loss):
        prior = Independent(Normal(*learned), 1)
        loc, scale = (part.expand(7, 2).clone().requires_grad_() for part in WRONG)
        return torch.autograd.grad(
            loss(output_of(loc, scale, draws(6, 7), decoder=decoder, prior=prior)).sum(), parameters
        )

    ours = gradients(ImportanceWeighted(alpha=alpha, gradient=gradient))
    torch.testing.assert_close(ours, gradients(lambda output: naive(output, alpha)))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_reparameterized_is_the_gradient_of_the_bound_as_it_stands(alpha):
    ours = encoder_gradients(WRONG, draws(6, 7), ImportanceWeighted(alpha=alpha, gradient="reparameterized"))
    torch.testing.assert_close(ours, encoder_gradients(WRONG, draws(6, 7), lambda output: naive(output, alpha)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("samples", [1, 2])
def test_both_gradients_have_the_same_expectation_by_quadrature(alpha, samples):
    # With D = 2 and S = 2 the draws are 4 numbers: a grid of Gauss-Hermite points leaves no error of chance.
    points, masses = np.polynomial.hermite_e.hermegauss(16)
    count = 2 * samples
    grid = torch.tensor(np.stack(np.meshgrid(*[points] * count), -1).reshape(-1, count))
    mass = torch.tensor(np.prod(np.stack(np.meshgrid(*[masses] * count), -1).reshape(-1, count), -1))
    mass = mass / mass.sum()
    eps = grid.view(-1, samples, 2).transpose(0, 1)
    ours = encoder_gradients(WRONG, eps, ImportanceWeighted(alpha=alpha))
    plain = encoder_gradients(WRONG, eps, lambda output: naive(output, alpha))
    torch.testing.assert_close(mass @ ours, mass @ plain, atol=1e-4, rtol=0)
    assert not torch.allclose(ours, plain, atol=0.1)
    if samples == 1:  # Of the ELBO it is known without any draws.
        loc, log_scale = WRONG[0].clone().requires_grad_(), WRONG[1].log().requires_grad_()
        rate = kl_divergence(Independent(Normal(loc, log_scale.exp()), 1), Independent(Normal(*EXACT), 1))
        exact = torch.cat(torch.autograd.grad(rate, [loc, log_scale]))
        torch.testing.assert_close(mass @ ours, exact, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("samples", [3, 8])
def test_both_gradients_have_the_same_mean_over_many_draws(alpha, samples):
    eps = draws(samples, 20_000, seed=samples)
    ours = encoder_gradients(WRONG, eps, ImportanceWeighted(alpha=alpha))
    plain = encoder_gradients(WRONG, eps, lambda output: naive(output, alpha))
    difference = ours - plain  # of the same draws
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() < 4 * error).all()
    assert (ours.mean(0).abs() > 8 * error).any(), "a mean of nothing but chance would show nothing"


@pytest.mark.parametrize("alpha", ALPHAS)
def test_at_the_exact_posterior_every_single_gradient_is_zero_and_near_it_less_noisy(alpha):
    eps = draws(8, 2000)
    dreg, plain = ImportanceWeighted(alpha=alpha), ImportanceWeighted(alpha=alpha, gradient="reparameterized")
    torch.testing.assert_close(encoder_gradients(EXACT, eps, dreg), torch.zeros(2000, 4).double(), atol=1e-12, rtol=0)
    assert (encoder_gradients(EXACT, eps, plain).std(0) > 0.05).all()
    near = (EXACT[0] + 0.05, EXACT[1] * 1.05)
    ours, theirs = (encoder_gradients(near, eps, loss).std(0) for loss in (dreg, plain))
    assert (ours < 0.5 * theirs).all()


def test_the_signal_of_dreg_outgrows_its_noise_as_draws_are_added_and_that_of_the_plain_gradient_drowns():
    # Wider than p(z|x) everywhere: where q is narrower, weights have heavy tails, and no estimator is calm.
    wide, ratios = (WRONG[0], 1.4 * EXACT[1]), {}
    for gradient in ("dreg", "reparameterized"):
        for samples in (4, 256):
            found = encoder_gradients(wide, draws(samples, 1000), ImportanceWeighted(gradient=gradient))
            ratios[gradient, samples] = found.mean(0).norm() / found.std(0).norm()
    assert ratios["dreg", 256] > 2 * ratios["dreg", 4]
    assert ratios["reparameterized", 256] < ratios["reparameterized", 4]
    assert ratios["dreg", 256] > 10 * ratios["reparameterized", 256]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_other_terms_keep_their_gradient_by_z(alpha):
    eps, bound = draws(6, 7), ImportanceWeighted(alpha=alpha)
    alone = encoder_gradients(WRONG, eps, bound)
    # f = 3 sum_s |z_s|^2: 6 sum_s z_s by the mean, and times scale * eps by the log scale.
    together = encoder_gradients(WRONG, eps, lambda output: bound(output) + 3 * output.z.square().sum((0, 2)))
    z = WRONG[0] + WRONG[1] * eps
    known = torch.cat([6 * z.sum(0), 6 * (z * WRONG[1] * eps).sum(0)], -1)
    torch.testing.assert_close(together - alone, known)


def test_accumulated_gradients_are_the_sum_of_each_batchs():
    loss = ImportanceWeighted()
    loc, log_scale = WRONG[0].clone().requires_grad_(), WRONG[1].log().requires_grad_()
    for seed in (1, 2):
        # The factor of the loss as in training, where a step is taken in pieces.
        (0.5 * loss(output_of(loc.expand(5, 2), log_scale.exp().expand(5, 2), draws(4, 5, seed))).mean()).backward()
    apart = [encoder_gradients(WRONG, draws(4, 5, seed), loss).mean(0) for seed in (1, 2)]
    torch.testing.assert_close(torch.cat([loc.grad, log_scale.grad]), 0.5 * (apart[0] + apart[1]))


def test_in_a_whole_model_the_encoder_gets_the_weighted_path_gradient_and_the_rest_the_plain_one():
    alpha, batch = 0.3, collate(SENTENCES, 0)

    def gradients(loss) -> dict[str, Tensor]:
        model = small_model()
        loss(model(batch, samples=2, noise=noise())).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def by_hand(output: VAEOutput) -> Tensor:
        # The path gradient through a z cut off from the encoder, put together weight by weight.
        z = output.z.detach().requires_grad_()
        base = output.posterior.base_dist
        held = Independent(Normal(base.loc.detach(), base.scale.detach()), 1)
        logs = small_model().log_likelihood(batch, z) + output.prior.log_prob(z) - held.log_prob(z)
        v = ((1 - alpha) * logs.detach()).softmax(0)
        (path,) = torch.autograd.grad(((alpha * v + (1 - alpha) * v**2) * logs).sum(), z)
        return -(path * output.z).sum((0, 2))

    ours = gradients(Objective(ImportanceWeighted(alpha=alpha), {}).reconstruction)
    plain = gradients(ImportanceWeighted(alpha=alpha, gradient="reparameterized"))
    hand = gradients(by_hand)
    assert ours.keys() == plain.keys()
    for name in ours:
        encoder = name.startswith(("encoder", "posterior"))
        torch.testing.assert_close(ours[name], (hand if encoder else plain)[name])
        assert encoder == (name in hand)


def test_without_gradients_it_is_the_same_number_and_asks_for_no_decoded():
    output = output_of(*WRONG, draws(6, 7))
    expected = naive(output, 0.0).detach()
    bare = output._replace(decoded=None)
    with torch.no_grad():
        torch.testing.assert_close(ImportanceWeighted()(bare), expected)
    with torch.inference_mode():
        torch.testing.assert_close(ImportanceWeighted()(output_of(*WRONG, draws(6, 7))), expected)
    # An encoder that is not trained leaves z without gradient; the decoder's is there.
    decoder = Decoder()
    ImportanceWeighted()(output_of(*WRONG, draws(6, 7), decoder=decoder)).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters)


def test_what_it_cannot_weigh_is_an_error_that_says_so():
    z = torch.zeros(2, 4, 3)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    with pytest.raises(ValueError, match="language model"):
        ImportanceWeighted()(VAEOutput(None, None, torch.zeros(1, 4, 0), -torch.rand(1, 4)))
    full = VAEOutput(MultivariateNormal(torch.zeros(4, 3), torch.eye(3)), prior, z, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"MultivariateNormal. Use gradient: reparameterized"):
        ImportanceWeighted()(full)
    torch.testing.assert_close(ImportanceWeighted(gradient="reparameterized")(full), torch.zeros(4))
    for gradient in ("dreg", "reparameterized"):
        with pytest.raises(ValueError, match="no density"):
            ImportanceWeighted(gradient=gradient)(full._replace(posterior=Point(torch.zeros(4, 3))))
    loc, scale = (part.clone().requires_grad_() for part in WRONG)
    output = output_of(loc, scale, draws(2, 3))
    for decoded in (None, output.z):
        with pytest.raises(ValueError, match="`decoded`"):
            ImportanceWeighted()(output._replace(decoded=decoded))
