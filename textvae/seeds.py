"""Random streams that are functions of numbers: nothing to save, and nobody else's draws move them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def mix(*numbers: int) -> int:
    """One seed from several numbers; Knuth's multiplicative hash, so that neighbours do not look alike."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


def generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a random stream that is a function of the numbers alone."""
    return torch.Generator(device=device).manual_seed(mix(*numbers))


def seed_all(seed: int) -> None:
    """`torch.manual_seed` of the devices in use; that one's look at every other backend costs 0.1 ms, in each step."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def set_aside(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within it the global states of the CPU and a device are a seed's, which is for what draws from those alone.

    They are put back afterwards, and no other device's is touched (`torch.manual_seed` seeds all).
    """
    used = torch.device(device)
    cuda = [used] if used.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within it what draws from the global state alone draws from `generator`'s; the global state is put back."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with set_aside(seed, generator.device):
        yield
