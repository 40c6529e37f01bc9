"""Several processes as one: rows and gradients of all, work shared out and its results put together."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_alone = contextvars.ContextVar("_alone", default=False)


def world_size() -> int:
    """Returns how many processes train together; 1 within `alone`."""
    if _alone.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process's rows are all there are: for what every process holds whole, and none shares out."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def rank() -> int:
    """Returns which of them this process is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_mine(number: int, *, together: bool = True) -> bool:
    """Returns whether the piece of work of that number is this process's; all are, where they do not work together."""
    return not together or number % world_size() == rank()


def all_results(results: Mapping[int, T], *, together: bool = True) -> list[T]:
    """Returns all processes' results by the number of the work (`is_mine`), in its order, on each process.

    Args:
        results: of this process; anything that pickles, tensors on the CPU.
        together: whether the processes share the work; else these are all results.
    """
    parts: list[Any] = [results]
    if together and world_size() > 1:
        parts = [None] * world_size()
        dist.all_gather_object(parts, results)
    everything = {number: result for part in parts for number, result in part.items()}
    return [everything[number] for number in sorted(everything)]


def agreed(value: T, *, together: bool = True) -> T:
    """Returns the first process's value, on each process."""
    holder = [value]
    if together and world_size() > 1:
        dist.broadcast_object_list(holder, src=0)
    return holder[0]


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


def reached(total: Tensor, parameters: Sequence[Tensor]) -> list[bool]:
    """Returns, of each parameter, whether a loss has a gradient for it: what lies on its graph."""
    found, seen, left = set(), set(), [total.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        left += [further for further, _ in node.next_functions]
    return [id(parameter) in found for parameter in parameters]


def with_all(total: Tensor, parameters: Sequence[Tensor], found: Sequence[bool]) -> Tensor:
    """Returns the loss with a gradient of zero for each parameter that was not found on its graph.

    DistributedDataParallel waits for every parameter's gradient; a term whose weight is 0, or words that no sentence of
    this process has, would leave it waiting.
    """
    for parameter, is_there in zip(parameters, found):
        if not is_there:
            total = total + 0.0 * parameter.flatten()[0]
    return total


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Averages the gradients of parameters that DistributedDataParallel does not know, in place.

    Where one process has a gradient and another has none (no word of its batch stands in a cluster), that counts as 0.
    """
    parameters = list(parameters)
    if world_size() == 1 or not parameters:
        return
    having = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    having = having.to(parameters[0].device)
    dist.all_reduce(having)
    for parameter, processes in zip(parameters, having.tolist()):
        if processes:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
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
