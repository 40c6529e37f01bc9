"""All processes' rows in one tensor, with gradients: what a statistic of the batch needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Returns all processes' rows (B_all, ...) for this process's `rows` (B, ...); B may differ between them.

    Every process that computes the same scalar from the result gets, after DistributedDataParallel's
    average, the gradient of that scalar once: backward sums over the processes, the average divides.
    """
    if world_size() == 1:
        return rows
    result: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return result


def mean_over_processes(value: Tensor) -> Tensor:
    """Returns the mean of a detached tensor over the processes, the same on each; each gives one of the same shape."""
    if world_size() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed / world_size()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Averages the gradients of parameters that DistributedDataParallel does not know, in place."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world = world_size()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(count) for count in counts]
        # all_gather wants equal shapes.
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        rank = dist.get_rank()
        ctx.span = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.span]
