"""Flows: Jacobians by autograd, densities by quadrature, one law whichever way it is computed."""

import builtins
import importlib
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch.distributions import Normal

from textvae.errors import MissingExtraError
from textvae.latent.flows import FlowDistribution, FlowPosterior, FlowPrior, least_numbers
from textvae.latent.posteriors import sample

KINDS = ["autoregressive", "coupling"]


def strong(module: torch.nn.Module, strength: float = 0.8) -> torch.nn.Module:
    """In float64, with parameters large enough that the flow is far from affine."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            factor = strength if name.startswith("flow") and parameter.ndim > 1 else 0.3
            parameter.copy_(factor * torch.randn(parameter.shape, generator=generator))
    return module.double()


def density_by_jacobian(distribution: FlowDistribution, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z (D,) made from standard normal noise (D,), and its log density by autograd; distribution without batch."""

    def push(e):
        return distribution.from_noise(e)

    jacobian = torch.autograd.functional.jacobian(push, noise)
    log_normal = Normal(0.0, 1.0).log_prob(noise).sum()
    return push(noise).detach(), log_normal - torch.linalg.slogdet(jacobian)[1]


@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["posterior", "prior"])
def test_log_prob_equals_the_autograd_jacobians(family, kind, dimensions):
    options = {"transform": kind, "hidden_dim": 8}
    torch.manual_seed(0)
    if family == "posterior":
        distribution = strong(FlowPosterior(3, dimensions, **options))(torch.randn(3).double())
    else:
        prior = strong(FlowPrior(dimensions, **options))
        prior.shift += 0.5
        prior.stretch *= 2.0
        distribution = prior()
    for _ in range(3):
        noise = torch.randn(dimensions, dtype=torch.float64)
        z, expected = density_by_jacobian(distribution, noise)
        torch.testing.assert_close(distribution.log_prob(z.clone()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one_in_two_dimensions(kind):
    torch.manual_seed(0)
    posterior = strong(FlowPosterior(3, 2, transform=kind, hidden_dim=8), 0.4)(torch.randn(1, 3).double())
    for distribution in (posterior, strong(FlowPrior(2, transform=kind, hidden_dim=8), 0.4)()):
        draws = distribution.sample(torch.Size([4000])).reshape(-1, 2)
        # Heavy tails: the box holds almost all; the grid inside is fine.
        low, high = draws.quantile(0.001, dim=0), draws.quantile(0.999, dim=0)
        axes = [torch.linspace(float(a), float(b), 500, dtype=torch.float64) for a, b in zip(low, high)]
        grid = torch.cartesian_prod(*axes)
        with torch.no_grad():
            density = distribution.log_prob(grid[:, None] if distribution is posterior else grid).exp()
        cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
        inside = ((draws >= low) & (draws <= high)).all(-1).double().mean()
        assert float(density.sum()) * cell == pytest.approx(float(inside), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_the_last_draw_equals_that_of_the_same_numbers_and_has_their_gradient(kind):
    torch.manual_seed(0)
    head = strong(FlowPosterior(3, 4, transform=kind, hidden_dim=8))
    features, noise = torch.randn(5, 3).double(), torch.randn(2, 5, 4).double()
    gradients = []
    for again in (lambda z: z, lambda z: z + 0.0):
        posterior = head(features)
        z = sample(posterior, 2, noise)
        value = posterior.log_prob(again(z))
        assert value.shape == (2, 5)
        gradients.append((value.detach(), *torch.autograd.grad(value.sum(), list(head.parameters()))))
    for remembered, computed in zip(*gradients):
        torch.testing.assert_close(remembered, computed)


def test_a_draw_without_gradients_does_not_take_them_from_log_prob():
    head = FlowPosterior(3, 4)
    posterior = head(torch.randn(5, 3))
    z = posterior.sample(torch.Size([1]))
    assert not z.requires_grad
    assert posterior.log_prob(z).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_to_themselves_and_given_noise_is_used(kind):
    torch.manual_seed(0)
    head = strong(FlowPosterior(3, 4, transform=kind))
    features, noise = torch.randn(5, 3).double(), torch.randn(2, 5, 4).double()
    order = torch.randperm(5)
    z, permuted = sample(head(features), 2, noise), sample(head(features[order]), 2, noise[:, order])
    torch.testing.assert_close(z[:, order], permuted)
    values = head(features).log_prob(z[:1, :1])  # one z under five posteriors
    torch.testing.assert_close(values, head(features).log_prob(z[:1, :1].expand(1, 5, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_draws_and_densities_are_float32_and_agree(kind):
    torch.manual_seed(0)
    head, prior = FlowPosterior(3, 4, transform=kind), FlowPrior(4, transform=kind)
    with torch.autocast("cpu", torch.bfloat16):
        for distribution in (head(torch.randn(5, 3)), prior()):
            z = distribution.rsample(torch.Size([2]))
            own, again = distribution.log_prob(z), distribution.log_prob(z + 0.0)
            assert z.dtype == own.dtype == again.dtype == torch.float32
            torch.testing.assert_close(own, again, atol=1e-4, rtol=1e-4)


def test_the_flow_learns_a_law_no_gaussian_has():
    # Half of the mass at +2, half at -2: the best Gaussian leaves log 2 and more unsaid.
    torch.manual_seed(0)
    prior = FlowPrior(2, hidden_dim=32)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for _ in range(200):
        rows = torch.randn(256, 1) * 0.5 + 2.0 * (torch.randint(2, (256, 1)) * 2 - 1)
        rows = torch.cat([rows, rows.square() - 4 + 0.5 * torch.randn(256, 1)], -1)
        loss = -prior().log_prob(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    covariance = torch.cov(rows.T)
    gaussian = 1 + math.log(2 * math.pi) + 0.5 * float(torch.logdet(covariance))
    assert float(loss.detach()) < gaussian - 0.5


def test_without_zuko_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "zuko":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"textvae\[flows\]"):
        FlowPrior(3)


def test_zukos_import_leaves_the_checks_of_other_distributions_on():
    """In a process of its own: torch's compiler, where another test has used it, turns them off for good."""
    script = (
        "from textvae.latent.priors import PRIORS\nfrom torch.distributions import Distribution\n"
        "PRIORS.build({'kind': 'flow'}, 3)\nprint(Distribution._validate_args)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("kind", ["autoregressive", "coupling"])
@pytest.mark.parametrize(("latent", "count", "hidden"), [(1, 2, 8), (2, 1, 1), (2, 3, 16), (5, 2, 7), (32, 2, 64)])
def test_the_numbers_that_a_flow_has_at_least_are_no_more_than_it_has(kind, latent, count, hidden):
    options = {"transform": kind, "transforms": count, "hidden_dim": hidden}
    least = least_numbers(latent, kind="flow", **options)
    for made in (FlowPrior(latent, **options), FlowPosterior(9, latent, **options)):
        has = sum(tensor.numel() for tensor in made.state_dict().values())
        assert least <= has
        if latent > 2 and hidden > 8:
            assert has < 6 * least + 10_000  # the bound is of the size itself, not of nothing


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_flow_prior_begins_near_the_standard_normal(dimensions):
    for seed in range(10):
        torch.manual_seed(seed)
        drawn = FlowPrior(dimensions)().sample((4_000,))
        assert drawn.mean(0).abs().max() < 0.6
        assert 0.5 < drawn.std(0).min() <= drawn.std(0).max() < 2
