"""Critics: divergences with a network of their own, which learns to tell the aggregate posterior from the prior.

A critic is a term of the objective like any other; beside it stand `critic_loss`, which the loop minimises over the
critic's parameters `steps` times a model step at rate `lr`, each update followed by `after_step`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from textvae.distributed import gather_rows
from textvae.latent.divergences import draw

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class WassersteinCritic(nn.Module):
    """The 1-Wasserstein distance between the aggregate posterior and the prior, in its dual form.

    W1 = max over 1-Lipschitz f of E_q f(z) - E_p f(z): the model minimises it, the critic maximises it. What is
    measured is a lower bound under the critic as far as it is trained and 1-Lipschitz, which is held by
    `constraint`. At q = p it is 0 up to sampling error on fresh draws, and above it on those the critic learnt.

    Args:
        latent_dim: D.
        hidden_dim: units a layer; even, for they work in pairs (MaxMin keeps the norm of gradients).
        layers: hidden layers.
        constraint: "gradient_penalty": `penalty` * max(0, |grad f| - 1)^2 between pairs of draws; a finite penalty
            leaves the slope, and with it the term, too large by 1 + W1 / (2 penalty). One-sided, for drawing the
            slope up to 1 everywhere forbids f to turn: of N(0.5, 0.3^2) against N(0, 1) the two-sided penalty saw
            only the shift, 0.50 of 0.70. "spectral_norm": each layer's largest singular value is 1.
            "clip": the weights' absolute values are at most `clip`, so that f is K-Lipschitz for a K unknown and
            often small: the term is K W1 at best; `lipschitz` measures K.
        clip: for "clip".
        penalty: for "gradient_penalty".
        lr: learning rate of the critic.
        steps: critic updates a model step.

    References:
        Arjovsky 2017, arXiv 1701.07875 (dual, clip); Gulrajani 2017, arXiv 1704.00028 (gradient penalty); Petzka
        2018, arXiv 1709.08894 (one-sided); Miyato 2018, arXiv 1802.05957 (spectral norm); Anil 2019, arXiv
        1811.05381 (MaxMin).
    """

    unit: ClassVar[str] = "latent units"

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 128,
        layers: Count = 2,
        constraint: Literal["clip", "gradient_penalty", "spectral_norm"] = "gradient_penalty",
        clip: Positive = 0.01,
        penalty: Positive = 10.0,
        lr: Positive = 1e-4,
        steps: Count = 5,
    ) -> None:
        super().__init__()
        self.constraint = constraint
        self.clip = clip
        self.penalty = penalty
        self.lr = lr
        self.steps = steps
        linear = _SpectralLinear if constraint == "spectral_norm" else nn.Linear
        parts: list[nn.Module] = []
        for width in [latent_dim, *[hidden_dim] * (layers - 1)]:
            parts += [linear(width, hidden_dim), _MaxMin()]
        self.net = nn.Sequential(*parts, linear(hidden_dim, 1))
        self.after_step()

    def forward(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns E_q f(z) - E_p f(z), (), in latent units, over all processes' sentences and as many prior draws."""
        rows = gather_rows(z[0])  # (B, D)
        return self._gap(rows, draw(prior, len(rows)))

    def critic_loss(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """Returns what the critic minimises, (): E_p f - E_q f, and the gradient penalty where that is the constraint.

        Args:
            z: (B, D) draws of q(z), detached.
            z_prior: (B, D) draws of p(z), detached.
        """
        loss = -self._gap(z, z_prior)
        if self.constraint == "gradient_penalty":
            mix = torch.rand(len(z), 1, dtype=z.dtype, device=z.device)
            between = (mix * z + (1 - mix) * z_prior).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(between).sum(), between, create_graph=True)
            # The norm's gradient at 0 is NaN without the small number.
            norm = (slope.square().sum(-1) + 1e-12).sqrt()
            loss = loss + self.penalty * (norm - 1).clamp_min(0).square().mean()
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts the weights back where the constraint wants them; call it after each of the critic's updates."""
        for part in self.net:
            if isinstance(part, _SpectralLinear):
                part.find_norm()
            elif self.constraint == "clip" and isinstance(part, nn.Linear):
                part.weight.clamp_(-self.clip, self.clip)
                part.bias.clamp_(-self.clip, self.clip)

    def lipschitz(self, z: Tensor, z_prior: Tensor) -> float:
        """Returns the critic's measured Lipschitz constant, of f per latent unit (see `steepest`)."""
        return steepest(self.net, z, z_prior)

    def _gap(self, z: Tensor, z_prior: Tensor) -> Tensor:
        difference: Tensor = self.net(z).mean() - self.net(z_prior).mean()
        return difference


class Adversarial(nn.Module):
    """-log D(z), where a discriminator D in (0, 1) tells the prior's draws from the posterior's.

    The discriminator minimises -E_p log D(p) - E_q log(1 - D(z)); the model minimises -E_q log D(z), which keeps
    its gradient where D is sure. At q = p the best D is 1/2 and the term log 2, not 0. A learned prior gets no
    gradient from it.

    Args:
        latent_dim: D.
        hidden_dim: units a layer.
        layers: hidden layers.
        lr: learning rate of the discriminator.
        steps: discriminator updates a model step.

    References:
        Makhzani 2015, arXiv 1511.05644; Goodfellow 2014, arXiv 1406.2661.
    """

    unit: ClassVar[str] = "nats"

    def __init__(
        self, latent_dim: int, *, hidden_dim: Count = 128, layers: Count = 2, lr: Positive = 5e-4, steps: Count = 1
    ) -> None:
        super().__init__()
        self.lr = lr
        self.steps = steps
        parts: list[nn.Module] = []
        for width in [latent_dim, *[hidden_dim] * (layers - 1)]:
            parts += [nn.Linear(width, hidden_dim), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*parts, nn.Linear(hidden_dim, 1))  # the logit of D

    def forward(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns -log D(z), (B,) nats, the mean over the draws of each sentence."""
        return functional.softplus(-self.net(z).squeeze(-1)).mean(0)

    def critic_loss(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """Returns the discriminator's loss, () nats: 2 log 2 where it knows nothing.

        Args:
            z: (B, D) draws of q(z), detached.
            z_prior: (B, D) draws of p(z), detached.
        """
        return functional.softplus(-self.net(z_prior)).mean() + functional.softplus(self.net(z)).mean()

    def after_step(self) -> None:
        """Does nothing: a discriminator has no constraint to hold."""

    def lipschitz(self, z: Tensor, z_prior: Tensor) -> float:
        """Returns the measured Lipschitz constant of D's logit, nats per latent unit (see `steepest`)."""
        return steepest(self.net, z, z_prior)


def steepest(net: nn.Module, z: Tensor, z_prior: Tensor) -> float:
    """Returns the largest norm of the network's gradient met on both sets of points and between their pairs.

    A lower bound of its Lipschitz constant. Draws nothing at random, so that measuring does not change a training.

    Args:
        net: (B, D) -> (B, 1).
        z: (B, D).
        z_prior: (B', D).
    """
    pairs = min(len(z), len(z_prior))
    with torch.inference_mode(False), torch.enable_grad():
        start, end = z.detach().clone(), z_prior.detach().clone()
        mix = torch.linspace(0, 1, pairs, dtype=z.dtype, device=z.device)[:, None]
        between = mix * start[:pairs] + (1 - mix) * end[:pairs]
        points = torch.cat([start, end, between]).requires_grad_()
        (slope,) = torch.autograd.grad(net(points).sum(), points)
    return float(slope.norm(dim=-1).max())


class _MaxMin(nn.Module):
    """Sorts each pair of units: as bent as a ReLU, and no gradient is lost on the way back."""

    def forward(self, hidden: Tensor) -> Tensor:
        a, b = hidden.chunk(2, dim=-1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=-1)


class _SpectralLinear(nn.Linear):
    """A linear map divided by its largest singular value, which `find_norm` follows as the weights move.

    torch's own spectral_norm moves its estimate in every forward of a training module, so that measuring a
    validation batch would change the training.
    """

    left: Tensor
    right: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("left", functional.normalize(torch.randn(out_features), dim=0))
        self.register_buffer("right", functional.normalize(torch.randn(in_features), dim=0))
        with torch.no_grad():
            self.find_norm(rounds=50)

    def find_norm(self, rounds: int = 3) -> None:
        """Power iteration for the first pair of singular vectors, from where it stood."""
        for _ in range(rounds):
            right = functional.normalize(self.weight.T @ self.left, dim=0)
            self.left.copy_(functional.normalize(self.weight @ right, dim=0))
            self.right.copy_(right)

    def forward(self, rows: Tensor) -> Tensor:
        norm = torch.dot(self.left, self.weight @ self.right)
        return functional.linear(rows, self.weight / norm, self.bias)
