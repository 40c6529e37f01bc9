"""Moves from sentences: mixing several, stepping around one, moving one dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.generation.latent import PATHS

if TYPE_CHECKING:
    from textvae.api import TextVAE


def mix_latents(z: Tensor, weights: Sequence[float] | None = None, *, path: str = "linear") -> Tensor:
    """Returns the weighted mean of latents, sum_i w_i z_i / sum_i w_i.

    spherical: the same direction, with the weighted mean of the norms; the mean of n independent Gaussian latents is
    shorter than any of them, by about 1/sqrt(n), and lies where the decoder has seen few sentences.

    Args:
        z: (N, D).
        weights: N numbers whose sum is above 0; one below 0 leads away from its sentence. Equal where absent.
        path: linear or spherical.

    Returns:
        (D,) in z's precision.

    Raises:
        UserError: no latent, other numbers of weights than latents, weights that are not finite or whose sum is not
            above 0, or an unknown path.

    References:
        White 2016, arXiv 1609.04468.
    """
    if z.dim() != 2 or not len(z):
        raise UserError(f"mix: got latents of shape {tuple(z.shape)}; (N, D) with N at least 1 is needed")
    if path not in PATHS:
        raise UserError(f"path: got {path!r}{suggest(path, PATHS)}")
    given = [1.0] * len(z) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(z):
        raise UserError(f"weights: got {len(given)} for {len(z)} sentences; each has one")
    if not all(map(math.isfinite, given)) or not sum(given) > 0:
        raise UserError(f"weights: got {given}; they must be finite, with a sum above 0")
    shares = torch.tensor(given, dtype=torch.float64, device=z.device)[:, None] / sum(given)
    mean = (shares * z.double()).sum(0)
    if path == "spherical" and float(mean.norm()) > 0:
        mean = mean / mean.norm() * (shares[:, 0] * z.double().norm(dim=-1)).sum().abs()
    return mean.to(z.dtype)


def mix(
    vae: TextVAE,
    texts: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    path: str = "linear",
    seed: int | None = None,
    **options: Any,
) -> str:
    """Returns the text decoded from the weighted mean of sentences' posterior means; see `mix_latents`.

    Greedily unless `method` says otherwise; other options are of decoding.
    """
    z = mix_latents(vae.encode(texts), weights, path=path)
    return vae.decode(z[None], seed=seed, **{"method": "greedy", **options})[0]


def around(
    mean: Tensor, scale: Tensor, n: int, *, radius: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Returns n latents at a distance from a posterior's mean: m + radius s * sqrt(D) u, u uniform on the unit sphere.

    The root mean square over dimensions of (z - m) / s is `radius` exactly; 1 is where nearly all of a
    high-dimensional posterior lies.

    Args:
        mean: (D,).
        scale: (D,) posterior standard deviations.
        n: how many.
        radius: in posterior standard deviations, 0 or more.
        generator: of the directions.

    Returns:
        (n, D), in the mean's precision.

    Raises:
        UserError: n or radius below 0, or a posterior that is a point, around which no distance is known.
    """
    if n < 0 or not 0 <= radius < math.inf:
        raise UserError(f"n, radius: got {n} and {radius}; each must be 0 or more")
    if not float(scale.abs().sum()) > 0:
        raise UserError(
            "perturb: the sentence's posterior is a point (a plain autoencoder): it has no deviation to go by"
        )
    direction = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    step = radius * math.sqrt(len(mean)) * scale.double() * direction  # (n, D)
    z: Tensor = mean.double() + step
    return z.to(mean.dtype)


def perturb(
    vae: TextVAE, text: str, n: int = 5, *, radius: float = 1.0, seed: int | None = None, **options: Any
) -> list[str]:
    """Returns n texts decoded around a sentence's posterior mean; see `around`.

    Args:
        vae: a run.
        text: the sentence.
        n: how many.
        radius: in posterior standard deviations.
        seed: of directions and decoding.
        **options: of decoding; greedily unless `method` says otherwise.
    """
    means, scales = vae.encode_distribution([text])
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    z = around(means[0], scales[0], n, radius=radius, generator=generator)
    return vae.decode(z, seed=seed, **{"method": "greedy", **options})


def along_dimension(z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Returns a latent (D,) with one dimension set to each of the values (n,), the others held: (n, D).

    Raises:
        UserError: a dimension that the latent has not.
    """
    if not 0 <= dimension < len(z):
        raise UserError(f"dimension: got {dimension}; there are {len(z)}, counted from 0")
    result = z.repeat(len(values), 1)
    result[:, dimension] = values.to(z)
    return result


def traverse(
    vae: TextVAE,
    text: str | None,
    dimension: int,
    steps: int = 7,
    *,
    low: float = -3.0,
    high: float = 3.0,
    seed: int | None = None,
    **options: Any,
) -> list[tuple[float, str]]:
    """Returns the values of one dimension of z, low to high, and the text decoded at each, the others held.

    Args:
        vae: a run.
        text: whose posterior mean gives the other dimensions; zeros where absent.
        dimension: 0 to D - 1.
        steps: how many values, 2 or more.
        low: the first value, latent units (standard deviations of a standard normal prior).
        high: the last one.
        seed: of decoding.
        **options: of decoding; greedily unless `method` says otherwise.

    Raises:
        UserError: no such dimension, fewer than 2 steps, or ends that are not finite.

    References:
        Higgins 2017 (beta-VAE, ICLR).
    """
    if steps < 2:
        raise UserError(f"steps: got {steps}; a traversal has its two ends, so 2 or more")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"low, high: got {low} and {high}; they must be finite")
    z = torch.zeros(vae.latent_dim) if text is None else vae.encode([text])[0]
    values = torch.linspace(low, high, steps)
    texts = vae.decode(along_dimension(z, dimension, values), seed=seed, **{"method": "greedy", **options})
    return list(zip(values.tolist(), texts))
