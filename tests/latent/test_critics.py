"""Critics against known Wasserstein distances; what their constraints promise."""

import copy
import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Independent, Normal

from textvae.latent.critics import Adversarial, WassersteinCritic
from textvae.registry import Registry


def gaussian(mean, scale) -> Independent:
    return Independent(Normal(torch.tensor(mean), torch.tensor(scale)), 1)


def trained(critic, q, p, updates, batch=256, lr=5e-3):
    optimizer = torch.optim.Adam(critic.parameters(), lr=lr, betas=(0.0, 0.9))
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=updates)
    for _ in range(updates):
        optimizer.zero_grad()
        critic.critic_loss(q.sample((batch,)), p.sample((batch,))).backward()
        optimizer.step()
        critic.after_step()
        rate.step()
    return critic


def measured(critic, q, p) -> tuple[float, float]:
    """The term on fresh draws, and the critic's Lipschitz constant there."""
    z, drawn = q.sample((20_000,)), p.sample((20_000,))
    with torch.no_grad():
        value = float(critic.net(z).mean() - critic.net(drawn).mean())
    return value, critic.lipschitz(z, drawn)


def w1_by_quantiles(q, p) -> float:
    value, _ = integrate.quad(lambda u: abs(q.ppf(u) - p.ppf(u)), 0, 1, limit=200)
    return value


# A finite penalty lets the slope go to 1 + W1 / (2 penalty): 50 keeps that under 2 %.
@pytest.mark.parametrize(
    "options", [{"constraint": "gradient_penalty", "penalty": 50.0}, {"constraint": "spectral_norm"}]
)
@pytest.mark.parametrize(
    ("mean", "scale", "truth"),
    [
        # Narrower as well as shifted: the best critic has a kink, and W1 is more than the shift.
        ([0.5], [0.3], w1_by_quantiles(stats.norm(0.5, 0.3), stats.norm(0, 1))),
        ([0.9, -1.2], [1.0, 1.0], 1.5),  # a shift: W1 is its length
    ],
)
def test_trained_critic_finds_w1_within_five_percent(options, mean, scale, truth):
    torch.manual_seed(0)
    q, p = gaussian(mean, scale), gaussian([0.0] * len(mean), [1.0] * len(mean))
    critic = trained(WassersteinCritic(len(mean), hidden_dim=32, **options), q, p, updates=500)
    value, slope = measured(critic, q, p)
    assert value == pytest.approx(truth, rel=0.05)
    assert slope < 1.2


def test_clipped_critic_finds_w1_only_after_division_by_its_lipschitz_constant():
    torch.manual_seed(0)
    q, p = gaussian([0.9, -1.2], [1.0, 1.0]), gaussian([0.0, 0.0], [1.0, 1.0])
    critic = trained(WassersteinCritic(2, hidden_dim=16, constraint="clip", clip=0.1), q, p, updates=400)
    value, slope = measured(critic, q, p)
    assert value < 1.2 or value > 1.8, "the raw value is W1 up to a factor"
    # The measured constant is the largest slope anywhere, so the quotient is at most W1 but for sampling error.
    assert value / slope == pytest.approx(1.5, rel=0.1)


def test_clip_holds_all_weights_from_the_start_and_after_each_step():
    critic = WassersteinCritic(3, hidden_dim=8, constraint="clip", clip=0.02)
    assert max(float(w.detach().abs().max()) for w in critic.parameters()) <= 0.02
    with torch.no_grad():
        for weight in critic.parameters():
            weight.add_(1.0)
    critic.after_step()
    assert max(float(w.detach().max()) for w in critic.parameters()) == pytest.approx(0.02)


def test_spectral_norm_makes_each_layer_s_largest_singular_value_one():
    torch.manual_seed(0)
    critic = WassersteinCritic(3, hidden_dim=8, constraint="spectral_norm")
    with torch.no_grad():
        for weight in critic.parameters():
            weight.add_(torch.randn_like(weight))
    for _ in range(60):
        critic.after_step()
    for layer in critic.net[::2]:
        eye = torch.eye(layer.in_features)
        matrix = (layer(eye) - layer(torch.zeros_like(eye))).T
        assert float(torch.linalg.matrix_norm(matrix.detach(), 2)) == pytest.approx(1.0, abs=1e-3)
    z, p = torch.randn(100, 3), torch.randn(100, 3)
    assert critic.lipschitz(z, p) <= 1 + 1e-3


def test_gradient_penalty_is_that_of_a_linear_critic():
    # With every unit open, f(z) = a z and the gradient is a everywhere: the penalty is (|a| - 1)^2.
    torch.manual_seed(0)
    critic = WassersteinCritic(2, hidden_dim=2, layers=1, penalty=7.0)
    with torch.no_grad():
        critic.net[0].weight.copy_(torch.eye(2))
        critic.net[0].bias.copy_(torch.tensor([1000.0, 0.0]))  # the first unit stays the larger one
        critic.net[2].weight.copy_(torch.tensor([[3.0, 4.0]]))
    z, p = torch.randn(50, 2) + 1, torch.randn(50, 2)
    gap = (z.mean(0) - p.mean(0)) @ torch.tensor([3.0, 4.0])
    loss = float(critic.critic_loss(z, p).detach())
    assert loss == pytest.approx(-float(gap) + 7 * 16, rel=1e-4)
    assert critic.lipschitz(z, p) == pytest.approx(5.0)


def test_gradient_penalty_is_finite_where_the_critic_is_flat():
    critic = WassersteinCritic(2, hidden_dim=4)
    torch.nn.init.zeros_(critic.net[-1].weight)
    critic.critic_loss(torch.randn(5, 2), torch.randn(5, 2)).backward()
    assert all(torch.isfinite(w.grad).all() for w in critic.parameters() if w.grad is not None)


def test_model_following_the_critic_moves_towards_the_prior():
    torch.manual_seed(0)
    p = gaussian([0.0, 0.0], [1.0, 1.0])
    for make in (lambda: WassersteinCritic(2, hidden_dim=16, lr=1e-2), lambda: Adversarial(2, hidden_dim=16, lr=1e-2)):
        critic, mean = make(), torch.tensor([2.0, -1.0], requires_grad=True)
        trained(critic, Independent(Normal(mean.detach(), 1.0), 1), p, updates=60, batch=64, lr=1e-2)
        z = (mean + torch.randn(1, 256, 2)).requires_grad_()
        critic(None, p, z).mean().backward()
        assert float(mean.grad @ mean.detach()) > 0, "descent shortens the mean"


def test_discriminator_learns_the_log_odds_of_two_gaussians():
    # The best logit of D is log p - log q, which is linear here: 0.5 - z for N(1, 1) against N(0, 1).
    torch.manual_seed(0)
    q, p = gaussian([1.0], [1.0]), gaussian([0.0], [1.0])
    critic = trained(Adversarial(1, hidden_dim=16), q, p, updates=500)
    z = torch.linspace(-1, 2, 7)[:, None]
    torch.testing.assert_close(critic.net(z).detach(), 0.5 - z, atol=0.2, rtol=0)
    got = critic(None, p, z[None]).detach()
    torch.testing.assert_close(got, torch.nn.functional.softplus(z[:, 0] - 0.5), atol=0.15, rtol=0)
    # Its slope is 1 where it has learnt.
    assert critic.lipschitz(z, z) == pytest.approx(1.0, abs=0.4)


def test_discriminator_of_equal_distributions_is_undecided():
    torch.manual_seed(0)
    p = gaussian([0.0, 0.0], [1.0, 1.0])
    critic = trained(Adversarial(2, hidden_dim=16), p, p, updates=150)
    value = float(critic(None, p, p.sample((1, 5000))).detach().mean())
    assert value == pytest.approx(math.log(2), rel=0.02)


@pytest.mark.parametrize("constraint", ["clip", "gradient_penalty", "spectral_norm"])
def test_measuring_changes_neither_the_critic_nor_the_random_state(constraint):
    torch.manual_seed(0)
    critic = WassersteinCritic(2, hidden_dim=4, constraint=constraint)
    before, state = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    z, p = torch.randn(9, 2), torch.randn(7, 2)
    torch.set_rng_state(state)
    with torch.inference_mode():
        critic.lipschitz(z, p)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        critic(None, gaussian([0.0, 0.0], [1.0, 1.0]), z[None])
    after = critic.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(w.grad is not None for w in critic.parameters())


def test_critic_without_a_constraint_cannot_be_configured():
    registry = Registry("divergence", {"wasserstein_critic": WassersteinCritic})
    (problem,) = registry.problems({"kind": "wasserstein_critic", "constraint": "none"}, "objective.w1")
    assert problem.startswith("objective.w1.constraint: got 'none'")
    for name, value in [("clip", 0.0), ("penalty", 0.0), ("hidden_dim", 3), ("steps", 0)]:
        assert registry.problems({"kind": "wasserstein_critic", name: value}, "objective.w1")
