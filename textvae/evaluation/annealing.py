"""Checks on the bound: annealed importance sampling of -log p(x), and the posterior refined by gradient."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from textvae.errors import UserError
from textvae.evaluation import bounds
from textvae.evaluation.latents import float64, gaussian_parameters
from textvae.latent.divergences import kl, shown
from textvae.latent.posteriors import diagonal_gaussian
from textvae.types import Batch

TARGET_ACCEPTANCE = 0.65  # Neal 2011, arXiv 1206.1901, section 4.4: the best for HMC in many dimensions
GAIN = 0.2  # of log step size for each unit of acceptance above the target, in the warm-up
STEEPNESS = 4.0  # the inverse temperatures follow a sigmoid over -STEEPNESS .. STEEPNESS


class Annealed(NamedTuple):
    """Sentence by sentence, in the order of the batches; float64 on the CPU."""

    nll: Tensor  # (N,) -log (1/S) sum_s w_s, nats a sequence
    effective_samples: Tensor  # (N,) (sum w)^2 / sum w^2, between 1 and S
    standard_error: Tensor  # (N,) of nll, nats, from the spread of the weights; nan for S = 1, which shows none
    acceptance: Tensor  # (N,) share of the transitions accepted, 0 to 1; nan where there is none
    tokens: Tensor  # (N,) int64 target tokens


class Refined(NamedTuple):
    """One batch's posteriors after gradient steps of their own, and what these gain."""

    posterior: Distribution  # diagonal Gaussian, batch (B,), event (D,)
    gap: Tensor  # (B,) float64 ELBO of the refined less that of the encoder's posterior, nats a sequence
    standard_error: Tensor  # (B,) of the gap, nats, from the draws
    nll: Tensor  # (B,) float64 -ELBO of the refined posterior, nats a sequence


def ais_nll(
    model: Any,
    batches: Iterable[Batch],
    *,
    samples: int = 8,
    temperatures: int = 100,
    leapfrog: int = 3,
    warm_up: int = 30,
    start: Literal["posterior", "prior"] = "posterior",
    batch_tokens: int = 20_000,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Estimates -log p(x) by annealed importance sampling, a check on `bounds.iw_nll` that needs no good posterior.

    log w = sum_t (b_t - b_{t-1}) (log p(x, z_t) - log s(z_t)), z_1 from s and z_{t+1} from z_t by a Hamiltonian
    transition that keeps s^(1-b_t) p(x, z)^b_t; b rises from 0 to 1 along a sigmoid. The mean of w is p(x) without
    bias, so that nll is an upper bound in expectation, and falls to -log p(x) as temperatures or samples grow: where
    it lies below the importance-weighted figure beyond both errors, that one is loose.

    Step sizes that follow the acceptance would break the exactness. They are found on separate chains (the warm-up),
    one a sentence and temperature, and frozen for the chains that count.

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`.
        batches: the sentences. The cost a sentence is samples * leapfrog * (temperatures + warm_up) passes forward
            and back, so a hundred of them, not the whole set.
        samples: S, chains a sentence.
        temperatures: T, steps from s to p(x, z); with 1 it is plain importance sampling from s.
        leapfrog: steps of a transition.
        warm_up: temperatures of the warm-up.
        start: s(z): q(z|x), or the prior, which makes the check independent of the encoder and needs more
            temperatures.
        batch_tokens: padded tokens times samples worked on at once (one sample at least).
        generator: of all draws; it lives on the model's device.

    Returns:
        (N,) each. Their mean is to be set beside that of `iw_nll` on the same sentences.

    Raises:
        UserError: no sentence, a count below 1, an unknown start, a posterior that is no diagonal Gaussian (a
            language model has none), or weights that are not finite.

    References:
        Neal 2001 (Statistics and Computing 11), arXiv physics/9803008; Wu 2017, arXiv 1611.04273.
    """
    _check(samples=samples, temperatures=temperatures, leapfrog=leapfrog, warm_up=warm_up, batch_tokens=batch_tokens)
    if start not in ("posterior", "prior"):
        raise UserError(f"start: got {start!r}; known: posterior, prior")
    _has_posterior(model)
    parts: list[Sequence[Tensor]] = []
    with _differentiable(model):
        for batch in batches:
            path = _Path(model, batch, start, batch_tokens)
            sizes = _warm_up(path, samples, warm_up, leapfrog, generator)
            chosen = torch.linspace(0, len(sizes) - 1, max(temperatures - 1, 0)).round().long()
            weights, acceptance = _anneal(path, samples, sizes[chosen.to(sizes.device)], leapfrog, generator)
            parts.append((*bounds.estimate(weights), acceptance, batch.lengths))
    found = Annealed(*bounds.joined(parts))
    if not bool(found.nll.isfinite().all()):
        raise UserError("annealed importance sampling: a sentence's weights are not finite; the weights are broken")
    return found


def refine(
    model: Any,
    batch: Batch,
    *,
    steps: int = 200,
    lr: float = 0.05,
    samples: int = 4,
    held_out: int = 100,
    batch_tokens: int = 20_000,
    generator: torch.Generator | None = None,
) -> Refined:
    """Refines each sentence's Gaussian posterior by gradient and returns what the encoder loses: the amortisation gap.

    gap = max over (m, s) of ELBO(N(m, diag s^2)) - ELBO(q(z|x)), by Adam from the encoder's own (m, s), the rate
    falling to 0 along a line; s within the bounds of the run's own family, where it has some. A lower bound of the gap
    in expectation, for the climb may stop short; unbiased for the posterior found, as both ELBOs are taken on the same
    fresh draws. What is then left between nll and -log p(x) is the approximation gap.

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`.
        batch: B sentences.
        steps: of Adam.
        lr: its first rate; the mean moves in units of the encoder's standard deviation, the scale in its logarithm.
        samples: draws a sentence in each step.
        held_out: draws a sentence that both ELBOs are taken on.
        batch_tokens: padded tokens times samples scored at once (one sample at least).
        generator: of all draws; it lives on the model's device.

    Returns:
        The refined posterior, batch (B,), and (B,) nats a sequence each.

    Raises:
        UserError: a count below 1, a rate that is not positive, or a posterior that is no diagonal Gaussian.

    References:
        Cremer 2018, arXiv 1801.03558, sections 3 and 5; Kim 2018, arXiv 1802.02550.
    """
    _check(steps=steps, samples=samples, held_out=held_out, batch_tokens=batch_tokens)
    if not 0 < lr < math.inf:
        raise UserError(f"lr: got {lr}; it must be a positive number")
    _has_posterior(model)
    with _differentiable(model):
        mean, scale = _gaussian(model.encode(batch))
        prior = model.prior()
        # In units of the encoder's own posterior, so that one rate suits narrow and wide ones.
        shift, stretch = (torch.zeros_like(mean, requires_grad=True) for _ in range(2))
        bounds_of = getattr(getattr(model, "posterior", None), "scale_bounds", None)
        limits = [(bound / scale).log() for bound in bounds_of] if bounds_of is not None else None
        optimizer = torch.optim.Adam([shift, stretch], lr=lr)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            noise = _noise(mean, samples, generator)
            with torch.enable_grad():
                posterior = diagonal_gaussian(mean + scale * shift, scale * stretch.exp())
                loss = -_elbo(model, batch, posterior, prior, noise).mean(0).sum()
                shift.grad, stretch.grad = torch.autograd.grad(loss, [shift, stretch])
            optimizer.step()
            if limits is not None:
                with torch.no_grad():
                    stretch.clamp_(*limits)
        refined = diagonal_gaussian((mean + scale * shift).detach(), (scale * stretch.exp()).detach())
        noise = _noise(mean, held_out, generator)
        chunk = max(1, batch_tokens // max(batch.targets.numel(), 1))
        before, after = (
            torch.cat([_elbo(model, batch, q, prior, part) for part in noise.split(chunk)])  # (held_out, B)
            for q in (diagonal_gaussian(mean, scale), refined)
        )
    gain = after - before
    if not bool(gain.isfinite().all()):
        raise UserError(f"refine: a posterior's ELBO is not finite after {steps} steps; use a smaller lr than {lr:g}")
    error = gain.std(0) / math.sqrt(held_out) if held_out > 1 else torch.full_like(gain[0], math.inf)
    return Refined(refined, gain.mean(0), error, -after.mean(0))


def amortisation_gap(model: Any, batches: Iterable[Batch], **options: Any) -> Tensor:
    """Returns each sentence's amortisation gap, (N,) float64 nats a sequence on the CPU; options: see `refine`.

    Raises:
        UserError: no sentence, or as `refine`.
    """
    (gap,) = bounds.joined([(refine(model, batch, **options).gap,) for batch in batches])
    return gap


class _Place(NamedTuple):
    """Where the chains stand."""

    z: Tensor  # (S, B, D)
    joint: Tensor  # (S, B) float64 log p(x, z)
    start: Tensor  # (S, B) float64 log s(z)
    joint_slope: Tensor  # (S, B, D)
    start_slope: Tensor  # (S, B, D)

    def height(self, beta: float) -> Tensor:
        return (1 - beta) * self.start + beta * self.joint

    def slope(self, beta: float) -> Tensor:
        return (1 - beta) * self.start_slope + beta * self.joint_slope


class _Path:
    """The geometric path of one batch, from s(z) to p(x, z)."""

    def __init__(self, model: Any, batch: Batch, start: str, batch_tokens: int) -> None:
        posterior = model.encode(batch)
        mean, scale = _gaussian(posterior)
        self.model, self.batch, self.prior = model, batch, model.prior()
        self.start = posterior if start == "posterior" else self.prior
        self.shape = mean.shape  # (B, D)
        self.chunk = max(1, batch_tokens // max(batch.targets.numel(), 1))
        # The length of a step in each dimension; any will do that does not depend on the chains.
        own = gaussian_parameters(self.start)
        self.scale = (torch.ones_like(scale) if own is None else own[1]).expand(mean.shape)

    def begin(self, samples: int, generator: torch.Generator | None) -> _Place:
        per_sentence = len(self.start.batch_shape) > 0
        z = bounds.draw(self.start, samples if per_sentence else samples * self.shape[0], generator)
        return self.at(z.reshape(samples, *self.shape).to(self.scale.dtype))

    def at(self, z: Tensor) -> _Place:
        # Chains that flew off stand nowhere; the transition gives them up.
        lost = ~z.isfinite().all(-1)
        z = z.masked_fill(lost[..., None], 0.0)
        parts = [self._scored(part) for part in z.split(self.chunk)]
        place = _Place(*(torch.cat(column) for column in zip(*parts)))
        return place._replace(joint=place.joint.masked_fill(lost, -math.inf))

    def _scored(self, z: Tensor) -> _Place:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            joint = self.model.log_likelihood(self.batch, z) + self.prior.log_prob(z)
            start = self.start.log_prob(z)
            (joint_slope,) = torch.autograd.grad(joint.sum(), z)
            (start_slope,) = torch.autograd.grad(start.sum(), z)
        return _Place(z.detach(), float64(joint.detach()), float64(start.detach()), joint_slope, start_slope)


def _temperatures(count: int) -> list[float]:
    """b_0 = 0 to b_T = 1."""
    sigmoid = torch.sigmoid(torch.linspace(-STEEPNESS, STEEPNESS, count + 1, dtype=torch.float64))
    rising: list[float] = ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()
    return rising


def _warm_up(path: _Path, samples: int, count: int, leapfrog: int, generator: torch.Generator | None) -> Tensor:
    """(count, B) step sizes, one a temperature and sentence, found by following the acceptance."""
    log_size = path.scale.new_full(path.shape[:1], -0.25 * math.log(max(path.shape[1], 1)))  # (B,)
    here, sizes = path.begin(samples, generator), []
    for beta in _temperatures(count)[1:]:
        here, probability = _transition(path, here, beta, log_size.exp(), leapfrog, generator)
        log_size = log_size + GAIN * (probability.mean(0).to(log_size) - TARGET_ACCEPTANCE)
        sizes.append(log_size.exp())
    return torch.stack(sizes)


def _anneal(
    path: _Path, samples: int, sizes: Tensor, leapfrog: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(S, B) float64 log weights and (B,) acceptance of chains with given step sizes (T - 1, B)."""
    here = path.begin(samples, generator)
    betas = _temperatures(len(sizes) + 1)
    weights, accepted = torch.zeros_like(here.joint), torch.zeros_like(here.joint[0])
    for step, (before, beta) in enumerate(itertools.pairwise(betas)):
        weights += (beta - before) * (here.joint - here.start)
        if step < len(sizes):  # what moves after the last weight would change none
            here, probability = _transition(path, here, beta, sizes[step], leapfrog, generator)
            accepted += probability.mean(0)
    # Without a transition this is 0 / 0: there is no such share.
    return weights, accepted / len(sizes) if len(sizes) else torch.full_like(accepted, math.nan)


def _transition(
    path: _Path, here: _Place, beta: float, size: Tensor, leapfrog: int, generator: torch.Generator | None
) -> tuple[_Place, Tensor]:
    """One Hamiltonian transition and its acceptance probability (S, B)."""
    momentum = first = _noise(here.z[0], len(here.z), generator)
    uniform = torch.rand((2, *here.joint.shape), generator=generator, device=here.z.device, dtype=here.z.dtype)
    # Steps of uneven length, so that no trajectory closes on itself; (S, B, D) in latent units.
    width = (size * (0.8 + 0.4 * uniform[0]))[..., None] * path.scale
    there, broken = here, torch.zeros_like(here.joint, dtype=torch.bool)
    momentum = momentum + 0.5 * width * there.slope(beta)
    for step in range(leapfrog):
        there = path.at(there.z + width * momentum)
        broken |= ~there.joint.isfinite()
        momentum = momentum + (0.5 if step == leapfrog - 1 else 1.0) * width * there.slope(beta)
    kinetic = 0.5 * float64(first.square().sum(-1) - momentum.square().sum(-1))
    probability = (there.height(beta) - here.height(beta) + kinetic).clamp_max(0).exp()
    probability = probability.masked_fill(broken | probability.isnan(), 0.0)
    accepted = uniform[1] < probability
    chosen = (
        torch.where(accepted if new.dim() == 2 else accepted[..., None], new, old) for new, old in zip(there, here)
    )
    return _Place(*chosen), probability


def _elbo(model: Any, batch: Batch, posterior: Distribution, prior: Distribution, noise: Tensor) -> Tensor:
    """(S, B) float64 log p(x|z) - KL, nats a sequence, on the draws of given noise."""
    mean, scale = _gaussian(posterior)
    z = mean + scale * noise
    return float64(model.log_likelihood(batch, z)) - float64(kl(posterior, prior, z))


def _noise(like: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn((samples, *like.shape), generator=generator, device=like.device, dtype=like.dtype)


def _gaussian(posterior: Distribution) -> tuple[Tensor, Tensor]:
    found = gaussian_parameters(posterior)
    if found is None:
        raise UserError(
            f"annealing and refining need a diagonal Gaussian posterior; the posterior is {shown(posterior)}. "
            "Allowed: model.posterior kinds gaussian, batch_norm, delta"
        )
    return found


def check(model: Any, batch: Batch) -> None:
    """Raises UserError where a model's posterior is none that annealing and refining can start from."""
    _has_posterior(model)
    with bounds.evaluating(model):
        _gaussian(model.encode(batch))


def _has_posterior(model: Any) -> None:
    if model.latent_dim == 0:
        raise UserError("the run is a language model (model.latent_dim: 0): its NLL is exact already")


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}: got {value}; at least 1 is needed")


@contextlib.contextmanager
def _differentiable(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, gradients by z alone; parameters and modes are put back afterwards."""
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # cuDNN's recurrent cells have no backward pass in evaluation mode; torch's own have.
    with bounds.evaluating(model), torch.inference_mode(False), torch.no_grad(), bounds.cudnn(enabled=False):
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
