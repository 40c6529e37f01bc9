"""Paths through the latent space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.generation import given

PATHS = ("linear", "spherical")
SAME_LINE = 1e-9  # sine of the angle under which two directions count as one line


def path(a: Tensor, b: Tensor, steps: int, *, kind: Literal["linear", "spherical"] = "linear") -> Tensor:
    """Returns points at equal distances on the way from a to b, both ends included exactly.

    linear: (1 - t) a + t b. spherical: the direction turns at a constant angular speed (slerp) while the norm goes
    linearly from |a| to |b|; Gaussian latents lie near a sphere, which the straight way leaves. Opposite directions
    turn through the axis that a is least along. A zero vector has no direction and takes the other's, and one
    dimension has no way round: both give the linear path.

    Args:
        a: (D,) or (B, D).
        b: as a.
        steps: number of points, 2 or more.
        kind: linear or spherical.

    Returns:
        (steps, D) or (steps, B, D), in a's precision.

    Raises:
        UserError: fewer than 2 steps, an unknown kind, or ends of different shapes.

    References:
        Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH; White 2016, arXiv 1609.04468.
    """
    steps = given.count(steps, "steps", 2)  # its two ends
    if kind not in PATHS:
        raise UserError(f"kind: got {kind!r}{suggest(kind, PATHS)}")
    if a.shape != b.shape or a.dim() not in (1, 2):
        raise UserError(f"path: got ends of shapes {tuple(a.shape)} and {tuple(b.shape)}; both must be (D,) or (B, D)")
    # (steps, 1) or (steps, 1, 1); float64, since a sentence may turn on a latent's last digits.
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device).view(-1, *[1] * a.dim())
    between = _spherical if kind == "spherical" and a.shape[-1] > 1 else torch.lerp
    points = between(a.double(), b.double(), t).to(a.dtype)
    points[0], points[-1] = a, b
    return points


def _spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Slerp of the directions, lerp of the norms; any batch, dimension D last."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    from_direction, to_direction = _unit(a), _unit(b)
    from_direction = torch.where(norm_a > 0, from_direction, to_direction)
    to_direction = torch.where(norm_b > 0, to_direction, from_direction)
    # Exact at small angles and near pi, where the arc cosine of the inner product has lost its digits.
    angle = 2 * torch.atan2(
        (from_direction - to_direction).norm(dim=-1, keepdim=True),
        (from_direction + to_direction).norm(dim=-1, keepdim=True),
    )
    across = _perpendicular(to_direction, from_direction)
    lost = across.norm(dim=-1, keepdim=True) < SAME_LINE
    axis = torch.zeros_like(across).scatter_(-1, from_direction.abs().argmin(dim=-1, keepdim=True), 1.0)
    across = _unit(torch.where(lost, _perpendicular(axis, from_direction), across))
    direction = torch.cos(t * angle) * from_direction + torch.sin(t * angle) * across
    return torch.lerp(norm_a, norm_b, t) * direction


def _perpendicular(vector: Tensor, to: Tensor) -> Tensor:
    """The part of vector at right angles to a unit vector."""
    return vector - (vector * to).sum(-1, keepdim=True) * to


def _unit(vector: Tensor) -> Tensor:
    """Vectors of length 1; zero stays zero."""
    norm = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(norm > 0, norm, 1.0)
