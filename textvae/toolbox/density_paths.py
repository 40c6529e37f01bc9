"""Paths along the data: from one latent to another without leaving where the encoded corpus lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.generation import given
from textvae.generation.latent import PATHS

if TYPE_CHECKING:
    from textvae.api import TextVAE

CORPUS = 2000  # sentences that stand for the corpus: the route is looked for among all their pairs
NODES = 33  # points of a path while it is relaxed
NEIGHBOUR = 5  # whose distance is the narrowest that a sentence's own density may be
PAIRS_AT_ONCE = 2**22
SETTLED = 1e-6  # share of the energy under which an iteration's gain ends the relaxation


class Aggregate:
    """The aggregate posterior of a corpus, q(z) = (1/N) sum_j N(z; m_j, diag(max(s_j, h)^2)), float64.

    The floor h keeps the sum from falling apart into a spike a sentence, as it does for a plain autoencoder (s = 0)
    and for any corpus that is small for its dimension. It is the median distance of a sentence to its fifth
    neighbour, over sqrt(D).

    Args:
        means: (N, D) posterior means.
        scales: (N, D) posterior standard deviations; zeros where absent.
        bandwidth: h, latent units.

    Raises:
        UserError: fewer than 2 sentences, shapes that do not fit, numbers that are not finite, or a bandwidth not
            above 0.

    References:
        Silverman 1986, Density estimation, section 5.2 (the nearest neighbours' distance as width).
    """

    def __init__(self, means: Tensor, scales: Tensor | None = None, *, bandwidth: float | None = None) -> None:
        widths = torch.zeros_like(means) if scales is None else scales
        if means.dim() != 2 or len(means) < 2 or widths.shape != means.shape:
            got = f"{tuple(means.shape)} and {tuple(widths.shape)}"
            raise UserError(f"corpus: got means and scales of shapes {got}; both must be (N, D), N at least 2")
        if not (means.isfinite().all() and widths.isfinite().all()):
            raise UserError("corpus: some of its posteriors' means or scales are not finite")
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(f"bandwidth: got {bandwidth}; it must be above 0")
        self.means = means.detach().cpu().double()
        self.bandwidth = _bandwidth(self.means) if bandwidth is None else float(bandwidth)
        self.scales = widths.detach().cpu().double().clamp_min(self.bandwidth)
        self._centre = self.means.mean(0)
        centred, precision = self.means - self._centre, self.scales.square().reciprocal()
        # log N(z; m, s^2) is linear in (z, z^2): one matrix product instead of M x N x D differences.
        self._linear, self._precision = centred * precision, precision
        self._constant = -0.5 * (centred.square() * precision).sum(-1) - self.scales.log().sum(-1)
        self._constant -= 0.5 * means.shape[1] * math.log(2 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z) in nats, (M,) float64, for z (M, D)."""
        return self.log_prob_and_gradient(z)[0]

    def log_prob_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log q(z) in nats, (M,), and its gradient, (M, D), in closed form.

        grad log q(z) = sum_j r_j(z) (m_j - z) / s_j^2 with the responsibilities r_j = p(j|z).
        """
        values, gradients = [], []
        for some in (z.double() - self._centre).split(max(1, PAIRS_AT_ONCE // len(self.means))):
            joint = self._joint(some)  # (rows, N)
            total = torch.logsumexp(joint, -1, keepdim=True)
            shares = torch.exp(joint - total)
            values.append(total.squeeze(-1) - math.log(len(self.means)))
            gradients.append(shares @ self._linear - some * (shares @ self._precision))
        return torch.cat(values), torch.cat(gradients)

    def level(self, percentile: float) -> float:
        """Returns the percentile of log q over the corpus's own means, each left out of the q it is held against.

        Raises:
            UserError: a percentile outside 0 to 100.
        """
        if not 0 <= percentile <= 100:
            raise UserError(f"percentile: got {percentile}; it must lie between 0 and 100")
        rows = torch.arange(len(self.means))
        values = []
        for some in rows.split(max(1, PAIRS_AT_ONCE // len(self.means))):
            joint = self._joint(self.means[some] - self._centre)
            joint[torch.arange(len(some)), some] = -torch.inf
            values.append(torch.logsumexp(joint, -1) - math.log(len(self.means) - 1))
        return float(torch.quantile(torch.cat(values), percentile / 100))

    def _joint(self, centred: Tensor) -> Tensor:
        squares = -0.5 * centred.square() @ self._precision.T
        return squares.addmm_(centred, self._linear.T).add_(self._constant)


def path_along(
    a: Tensor,
    b: Tensor,
    steps: int,
    aggregate: Aggregate,
    *,
    percentile: float = 50.0,
    pull: float = 300.0,
    power: float = 2.0,
    iterations: int = 200,
) -> Tensor:
    """Returns points at equal distances on a way from a to b that keeps the aggregate posterior's density.

    First the route: among the corpus's means the one that costs least, where a leap costs |dz|^power; above 1 many
    short steps through where the corpus is dense are cheaper than one over a hole (the sample Fermat distance). Then
    the route is pulled tight, as an elastic band, by preconditioned gradient steps that never raise the energy

        E = (n-1)/2 sum_i |z_(i+1) - z_i|^2 / s^2  +  pull/(n-2) sum_i max(0, level - log q(z_i)),

    s^2 the mean square width of q, level the percentile of log q over the corpus. Where the straight way is at least
    as dense as that, it is the path; nothing draws a path into the densest middle.

    Args:
        a: (D,).
        b: (D,).
        steps: number of points, 2 or more.
        aggregate: of the corpus; of more than 2,000 sentences evenly spaced ones make the route.
        percentile: of the corpus's density that the path keeps, 0 to 100.
        pull: weight of the density, 0 or more. Tension draws a way of length L and radius R inwards by L^2 / (pull R).
        power: of a leap's cost, 1 or more; 1 is the straight way.
        iterations: at most so many.

    Returns:
        (steps, D) in a's precision, both ends exact.

    Raises:
        UserError: fewer than 2 steps, ends of other shapes, or a number out of range.

    References:
        Groisman 2018, arXiv 1810.09398 (Fermat distance); Arvanitidis 2018, arXiv 1710.11379 (geodesics in the latent
        space of a VAE); Henkelman 2000, doi 10.1063/1.1323224 (elastic bands).
    """
    steps = given.count(steps, "steps", 2)  # its two ends
    dimensions = aggregate.means.shape[1]
    if a.shape != (dimensions,) or b.shape != (dimensions,):
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(f"path: got ends of shapes {shapes}; both must be ({dimensions},), as the corpus's latents")
    if power < 1 or pull < 0:
        raise UserError(f"power, pull: got {power} and {pull}; at least 1 and 0")
    ends = torch.stack([a, b]).detach().cpu().double()
    others = torch.unique(aggregate.means[_evenly(len(aggregate.means), CORPUS)], dim=0)
    route = _cheapest(torch.cat([ends, others]).numpy(), power)
    points = torch.cat([ends, others])[route]
    points = _spaced_evenly(points, max(NODES, 2 * steps - 1))
    points = _relaxed(points, aggregate, aggregate.level(percentile), pull, iterations)
    result = _spaced_evenly(points, steps).to(a)
    result[0], result[-1] = a, b
    return result


def interpolate(
    vae: TextVAE,
    a: str,
    b: str,
    steps: int = 7,
    *,
    path: str = "data",
    corpus: Sequence[str] | None = None,
    seed: int | None = None,
    **options: Any,
) -> list[str]:
    """Returns `steps` texts on a path between two sentences' posterior means, both ends included.

    Args:
        vae: a run.
        a: the first sentence.
        b: the last sentence.
        steps: 2 or more.
        path: data (`path_along`), or linear or spherical (`TextVAE.interpolate`).
        corpus: sentences whose latents the path keeps to; the first 2,000 of the run's training part where absent.
        seed: of decoding.
        **options: of decoding; greedily unless `method` says otherwise.

    Raises:
        UserError: an unknown path, an empty sentence, fewer than 2 steps, or a corpus of fewer than 2 sentences.
    """
    if path in PATHS:
        return vae.interpolate(a, b, steps, path=path, seed=seed, **options)  # type: ignore[arg-type]
    if path != "data":
        raise UserError(f"path: got {path!r}{suggest(path, ('data', *PATHS))}")
    ends = vae.encode([given.sentence(a, "a"), given.sentence(b, "b")])
    texts = vae.corpus_texts("train", CORPUS) if corpus is None else given.texts(corpus, "corpus")
    z = path_along(ends[0], ends[1], steps, Aggregate(*vae.encode_distribution(texts)))
    return vae.decode(z, seed=seed, **{"method": "greedy", **options})


def _evenly(count: int, at_most: int) -> Tensor:
    kept = min(count, at_most)
    return torch.arange(kept) * count // kept


def _bandwidth(means: Tensor) -> float:
    rows = torch.unique(means[_evenly(len(means), CORPUS)], dim=0)
    if len(rows) < 2:
        return 1.0  # one point, whatever the width
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    # The nearest is the row itself.
    near = distances.kthvalue(min(NEIGHBOUR + 1, len(rows)), dim=1).values
    return float(near.median()) / math.sqrt(means.shape[1])


def _cheapest(points: NDArray[np.float64], power: float) -> list[int]:
    """Rows of the cheapest way from row 0 to row 1, by Dijkstra's algorithm on the complete graph."""
    cost = np.full(len(points), np.inf)
    cost[0] = 0.0
    came_from = np.zeros(len(points), dtype=np.int64)
    open_cost = cost.copy()  # infinite once a row is settled
    while True:
        row = int(open_cost.argmin())
        if row == 1:
            break
        open_cost[row] = np.inf
        onward = cost[row] + np.square(points - points[row]).sum(-1) ** (power / 2)
        better = onward < cost  # never of a settled row: costs only rise
        cost[better] = open_cost[better] = onward[better]
        came_from[better] = row
    way = [1]
    while way[-1] != 0:
        way.append(int(came_from[way[-1]]))
    return way[::-1]


def _spaced_evenly(points: Tensor, count: int) -> Tensor:
    """(count, D) points at equal distances along the broken line through points (n, D)."""
    lengths = points.diff(dim=0).norm(dim=-1)
    along = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    wanted = torch.linspace(0, 1, count, dtype=points.dtype) * along[-1]
    after = torch.searchsorted(along, wanted).clamp(1, len(points) - 1)
    before = after - 1
    share = (wanted - along[before]) / lengths[before].clamp_min(torch.finfo(points.dtype).tiny)
    return torch.lerp(points[before], points[after], share.clamp(0, 1)[:, None])


def _relaxed(points: Tensor, aggregate: Aggregate, level: float, pull: float, iterations: int) -> Tensor:
    """Pulls a path (n, D) tight; the energy falls at each iteration."""
    inner, width = len(points) - 2, aggregate.scales.square().mean()
    tension = (len(points) - 1) / width

    def energy(path: Tensor) -> tuple[Tensor, Tensor]:
        steps = path.diff(dim=0)
        density, slope = aggregate.log_prob_and_gradient(path[1:-1])
        missing = (level - density).clamp_min(0)
        force = -tension * steps.diff(dim=0) - pull / inner * torch.where(missing[:, None] > 0, slope, 0)
        return 0.5 * tension * steps.square().sum() + pull / inner * missing.sum(), force

    # The second derivative of the first term, and what that of the second is near a sentence.
    laplace = torch.diag(torch.full((inner,), 2.0, dtype=points.dtype))
    laplace -= torch.diag(torch.ones(inner - 1, dtype=points.dtype), 1)
    laplace -= torch.diag(torch.ones(inner - 1, dtype=points.dtype), -1)
    curvature = tension * laplace + pull / inner / width * torch.eye(inner, dtype=points.dtype)
    value, force = energy(points)
    size = 1.0
    for _ in range(iterations):
        direction = torch.linalg.solve(curvature, force)
        while size > SETTLED:
            moved = points.clone()
            moved[1:-1] -= size * direction
            new_value, new_force = energy(moved)
            if new_value < value:
                break
            size /= 2
        else:
            return points
        gain = float(value - new_value)
        points, value, force, size = moved, new_value, new_force, min(1.0, 2 * size)
        if gain < SETTLED * float(value):
            break
    return points
