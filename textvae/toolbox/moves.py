"""Moves from sentences: mixing several, stepping around one, moving one dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.generation import given
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
        UserError: no latent, other numbers of weights than latents, weights that are not finite, whose sum is not
            above 0 or of which one is beyond 1,000 times the sum, or an unknown path.

    References:
        White 2016, arXiv 1609.04468.
    """
    z = torch.as_tensor(z)
    if z.dim() != 2 or not len(z):
        raise UserError(f"mix: got latents of shape {tuple(z.shape)}; (N, D) with N at least 1 is needed")
    if path not in PATHS:
        raise UserError(f"path: got {path!r}{suggest(path, PATHS)}")
    most = given.FARTHEST
    wanted = [1.0] * len(z) if weights is None else [given.size(one, "weights", -most, most) for one in weights]
    if len(wanted) != len(z):
        raise UserError(f"weights: got {len(wanted)} for {len(z)} sentences; each has one")
    if not 0 < max(map(abs, wanted)) <= given.LONGEST_STEP * sum(wanted):
        times = f"{given.LONGEST_STEP:,.0f} times"
        raise UserError(f"weights: got {wanted}; they must have a sum above 0, and none may be beyond {times} that sum")
    shares = torch.tensor(wanted, dtype=torch.float64, device=z.device)[:, None] / sum(wanted)
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

    Raises:
        UserError: as `mix_latents`, or an empty sentence.
    """
    sentences = [given.sentence(text, "texts") for text in given.texts(texts)]
    z = mix_latents(vae.encode(sentences), weights, path=path)
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
        radius: in posterior standard deviations, 0 to 1,000.
        generator: of the directions.

    Returns:
        (n, D), in the mean's precision.

    Raises:
        UserError: n or radius out of range, or a posterior that is a point, around which no distance is known.
    """
    n, radius = given.count(n, "n"), given.size(radius, "radius", 0.0)
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

    Raises:
        UserError: as `around`, or an empty sentence.
    """
    seed = given.seed(seed)
    means, scales = vae.encode_distribution([given.sentence(text, "text")])
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    z = around(means[0], scales[0], n, radius=radius, generator=generator)
    if vae.recipe.model.posterior.kind == "von_mises_fisher":  # the decoder knows the sphere alone
        z = torch.nn.functional.normalize(z, dim=-1)
    return vae.decode(z, seed=seed, **{"method": "greedy", **options})


def along_dimension(z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Returns a latent (D,) with one dimension set to each of the values (n,), the others held: (n, D).

    Raises:
        UserError: a dimension that the latent has not.
    """
    if not 0 <= given.count(dimension, "dimension", -given.MOST) < len(z):
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
        low: the first value, latent units (standard deviations of a standard normal prior), -1,000 to 1,000.
        high: the last one.
        seed: of decoding.
        **options: of decoding; greedily unless `method` says otherwise.

    Raises:
        UserError: no such dimension, fewer than 2 steps, ends out of range, or an empty sentence.

    References:
        Higgins 2017 (beta-VAE, ICLR).
    """
    steps = given.count(steps, "steps", 2)  # its two ends
    z = torch.zeros(vae.latent_dim) if text is None else vae.encode([given.sentence(text, "text")])[0]
    values = torch.linspace(given.size(low, "low"), given.size(high, "high"), steps)
    texts = vae.decode(along_dimension(z, dimension, values), seed=seed, **{"method": "greedy", **options})
    return list(zip(values.tolist(), texts))
