"""Critics: terms of the objective that are trained against the model, several steps for each of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from textvae.distributed import gather_rows
from textvae.types import VAEOutput

Critics = Sequence[tuple[Any, torch.optim.Optimizer]]


def optimizers(critics: Sequence[Any]) -> list[tuple[Any, torch.optim.Optimizer]]:
    """Returns each critic with its optimiser; Adam without momentum, as a moving target wants.

    References:
        Gulrajani 2017, arXiv 1704.00028, algorithm 1.
    """
    return [(critic, torch.optim.Adam(critic.parameters(), lr=critic.lr, betas=(0.0, 0.9))) for critic in critics]


def update_critics(critics: Critics, output: VAEOutput) -> None:
    """Moves each critic towards its own optimum on a batch's latents.

    Every process sees the rows of all and draws the same from the prior, so that the critics stay equal
    without being synchronised.
    """
    if not critics:
        return
    assert output.prior is not None
    with torch.no_grad():
        z = gather_rows(output.z[0].detach())  # (B, D)
    if not bool(torch.isfinite(z).all()):
        return  # the model leaves such a step out, and the critics' optimisers would keep it for good
    for critic, optimizer in critics:
        for _ in range(critic.steps):
            with torch.no_grad():
                drawn = output.prior.sample(torch.Size([len(z)]))
            # The model's own step has left its gradients in the critic.
            optimizer.zero_grad()
            critic.critic_loss(z, drawn).backward()
            norms = [parameter.grad.norm() for parameter in critic.parameters() if parameter.grad is not None]
            if not bool(torch.isfinite(torch.stack(norms)).all()):
                break
            optimizer.step()
            critic.after_step()
