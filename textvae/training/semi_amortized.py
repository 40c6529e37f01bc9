"""The semi-amortised step: each sentence's posterior goes on from the encoder's by gradient steps of its own.

With lambda = (mean, log scale) of q(z|x), lambda_0 the encoder's and f the objective summed over sentences:

    v_{k+1} = momentum * v_k - clip(df/dlambda (lambda_k)),    lambda_{k+1} = lambda_k + lr * v_{k+1},    k < K

The objective at lambda_K is what is minimised: by decoder, prior and terms directly and through the steps, by the
encoder through the steps alone. With a = dL/dlambda and b = dL/dv, back from k = K-1 to 0, J the derivative of clip:

    b += lr * a,    u = -J^T b,    a += d2f/dlambda2 u,    dL/dtheta += d2f/dtheta dlambda u,    b *= momentum

The second derivatives are differences of gradients, as neither the output layer nor the fused recurrences have any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from textvae.distributed import mean_over_processes
from textvae.evaluation.bounds import cudnn
from textvae.evaluation.refined import Settings, clipped, parameters_of, refine
from textvae.latent.posteriors import diagonal_gaussian
from textvae.model import SequenceVAE
from textvae.objective import Objective
from textvae.seeds import seed_all
from textvae.types import Batch, Losses


def backward(
    model: SequenceVAE,
    objective: Objective,
    batch: Batch,
    noise: Tensor,
    step: int,
    share: float,
    settings: Settings,
    *,
    scale: float,
    seed: int,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    term_seed: int | None = None,
    step_noise: Sequence[Tensor] | None = None,
) -> Losses:
    """Adds to .grad the gradients of scale * objective(output at lambda_K, step, share), through the refinement too.

    While a posterior is refined the loss is B * objective(.., share=1): a mean over sentences times their number, so
    that each sentence follows the gradient of its own loss, and lr means the same in every batch and piece of one.
    (A statistic of the batch, as MMD, gives a sentence B times its part, the part it has in a mean.) The published code
    takes the mean: its rate of 1 with 32 sentences is 1/32 here. Where the rate times the curvature passes
    2 (1 + momentum) the steps overshoot, the loss rises, and the gradient back through them grows with each.

    Cost: one pass of the encoder, and 3K + 1 of decoder and terms, forward and back: K to refine, one at lambda_K, two
    for each difference. Memory: one graph at a time beside the encoder's, two more copies of the gradients, and K
    lambdas with their gradients, (B, 2D) each.

    Gradients are added by hand: hooks of DistributedDataParallel do not run, and the caller averages over processes.

    Args:
        model: with a diagonal Gaussian posterior; not wrapped.
        objective: no critics and no controllers, whose state each pass would move.
        batch: B sentences.
        noise: (S, B, D) standard normal draws of the pass at lambda_K: z = mean + scale * noise.
        step: the optimiser step, which the schedules of weights ask for.
        share: see `Objective.forward`; of the loss at lambda_K alone.
        settings: K, rate, momentum and clip of the refinement.
        scale: factor of the gradients, 1 / (pieces of the batch).
        seed: of dropout in every pass, so that all are passes of one function; the encoder draws from seed + 1.
            torch's global random state is left somewhere after it.
        autocast: makes the context of the encoder's pass, the refinement and the loss at lambda_K. Differences are
            taken without, for bf16 has fewer digits than cancel.
        term_seed: of the objective's own draws in every pass, the same on all processes; None goes on from `seed`.
        step_noise: K draws like `noise`, one for each step; `noise` for all where absent. A posterior that is refined
            on the draw it is then judged by fits that draw: its bound looks better than it is, and the decoder learns
            from that.

    Returns:
        The losses at lambda_K, nats a sequence, detached.

    Raises:
        UserError: a posterior that is no diagonal Gaussian.
        ValueError: a language model, which has none.

    References:
        Kim 2018, arXiv 1802.02550, algorithm 1; Domke 2012 (AISTATS). The published code clips what flows back, too;
        here clip is differentiated, and the gradients are those of what is computed.
    """
    assert not objective.critics, "a critic moves while posteriors are refined"
    assert not objective.controllers, "each pass would move them"
    # The encoder's are among them: what lambda_0 alone reaches gets nothing from the passes after it.
    candidates = [*model.parameters(), *objective.trained_with_the_model()]
    parameters = [p for p in dict.fromkeys(candidates) if p.requires_grad]
    with torch.enable_grad(), _same_dropout(model):
        seed_all(seed + 1)
        with autocast():
            start = parameters_of(model.encode(batch))  # (B, 2D), with its graph
        loss = _Loss(model, objective, batch, noise.to(start), step, seed, term_seed, autocast)
        steps = [replace(loss, noise=noise.to(start)) for noise in step_noise or [noise] * settings.steps]
        path, refined = refine(lambda at, k: steps[k].gradients(at)[0], start.detach(), settings)
        losses = loss(refined.requires_grad_(), share)
        gradient, *direct = torch.autograd.grad(scale * losses.total, [refined, *parameters], allow_unused=True)
        _add(parameters, direct)
        with _full_precision(start.device):
            exact = [replace(one, autocast=contextlib.nullcontext) for one in steps]
            gradient = _back(exact, path, gradient, parameters, settings)
        if start.requires_grad:
            _add(parameters, torch.autograd.grad(start, parameters, gradient, allow_unused=True))
    return losses._replace(total=losses.total.detach())


@dataclass(frozen=True)
class _Loss:
    """The objective as a function of lambda and the parameters, and of nothing else: all randomness is fixed."""

    model: SequenceVAE
    objective: Objective
    batch: Batch
    noise: Tensor
    step: int
    seed: int
    term_seed: int | None
    autocast: Callable[[], AbstractContextManager[Any]]

    def __call__(self, at: Tensor, share: float = 1.0) -> Losses:
        """Returns the losses at lambda (B, 2D)."""
        mean, log_scale = at.chunk(2, dim=-1)
        scale = log_scale.exp()
        seed_all(self.seed)
        with self.autocast():
            output = self.model.describe(self.batch, diagonal_gaussian(mean, scale), mean + scale * self.noise)
            if self.term_seed is not None:
                seed_all(self.term_seed)
            losses: Losses = self.objective(output, self.step, share)
        return losses

    def gradients(self, at: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the gradients of the sum over sentences by lambda, (B, 2D), and by parameters; None where unused."""
        at = at.detach().requires_grad_()
        total = len(at) * self(at).total
        by_lambda, *others = torch.autograd.grad(total, [at, *parameters], allow_unused=True)
        return by_lambda, list[Tensor | None](others)


def _back(
    steps: Sequence[_Loss],
    path: list[tuple[Tensor, Tensor]],
    gradient: Tensor,
    parameters: list[nn.Parameter],
    settings: Settings,
) -> Tensor:
    """Takes dL/dlambda_K, (B, 2D), back through the steps to dL/dlambda_0; adds what parameters did to the steps."""
    of_velocity = torch.zeros_like(gradient)
    for loss, (at, raw) in zip(reversed(steps), reversed(path)):
        of_velocity = of_velocity + settings.lr * gradient
        raw = raw.detach().requires_grad_()
        (direction,) = torch.autograd.grad(clipped(raw, settings.clip), raw, -of_velocity)
        change, others = _second_derivatives(loss, at, direction, parameters)
        _add(parameters, others)
        gradient = gradient + change
        of_velocity = settings.momentum * of_velocity
    return gradient


def _second_derivatives(
    loss: _Loss, at: Tensor, direction: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns d2f/dlambda2 u, (B, 2D), and d2f/dtheta dlambda u for u (B, 2D), by central differences.

    (f'(lambda + r u) - f'(lambda - r u)) / 2r errs by r^2 f''' / 6 and by rounding, eps f' / r. With h = r |u| both are
    least near h = eps^(1/3), 0.005 in float32. |u| is the largest norm of a sentence: h is then the move of lambda,
    whose units are the prior's scale and the logarithm of the posterior's, for the sentence that counts most. In
    float32 the whole step's gradients then came within 1e-5 of those in float64, and 1e-3 where the steps overshoot;
    the published difference, forward with r = 1e-5, came within 0.3. At a kink (free bits) the slope is a chord's, and
    large.
    """
    # One r for all rows, as parameters sum over them, and for all processes, as statistics of the batch join those.
    largest = mean_over_processes(direction.norm(dim=-1).max()).clamp_min(torch.finfo(at.dtype).tiny)
    reach = torch.finfo(at.dtype).eps ** (1 / 3) / largest
    above, others_above = loss.gradients(at + reach * direction, parameters)
    below, others_below = loss.gradients(at - reach * direction, parameters)
    others = [
        None if high is None or low is None else (high - low) / (2 * reach)
        for high, low in zip(others_above, others_below)
    ]
    return (above - below) / (2 * reach), others


def _add(parameters: list[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Adds to .grad what there is to add."""
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None:
            # A copy, for autograd gives one tensor to parameters that are added, as a cell's two biases.
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)


@contextlib.contextmanager
def _same_dropout(model: nn.Module) -> Iterator[None]:
    """A context in which the seed decides all dropout; cuDNN's, between stacked layers, has a state of its own."""
    stacked = any(isinstance(part, nn.RNNBase) and part.training and part.dropout > 0 for part in model.modules())
    with cudnn(enabled=False) if stacked else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """A context without autocast and without TF32, cuDNN's default in float32: both have too few digits."""
    with torch.autocast(device.type, enabled=False), cudnn(allow_tf32=False):
        yield
