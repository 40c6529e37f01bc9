"""Random streams that are functions of numbers: nothing to save, and nobody else's draws move them."""

from __future__ import annotations

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
