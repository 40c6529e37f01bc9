"""Distances between the aggregate posterior and the prior: MMD, sliced, Gaussian and entropic Wasserstein.

Those of samples take one draw a sentence, over all processes, and as many draws of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from textvae.distributed import gather_rows
from textvae.latent.divergences import diagonal_gaussian, draw, shown
from textvae.latent.vmf import UniformSphere

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class MMD:
    """Squared maximum mean discrepancy between the aggregate posterior and the prior.

    MMD^2 = E k(z, z') + E k(p, p') - 2 E k(z, p) over pairs z != z', p != p', with z from q(z) and as many
    p from the prior: unbiased, so that it can fall below 0. The rows of all processes enter.

    Args:
        kernel: "imq": sum over c of C / (C + |x - y|^2). "gaussian" and "mixed": sum over c of
            exp(-|x - y|^2 / C). C = c * 2 D (the mean squared distance of two draws from N(0, I)).
        scales: the c; several make the test sensitive near and far. None takes 1 for "gaussian", and
            0.1, 0.2, 0.5, 1, 2, 5, 10 for "imq" and "mixed".

    References:
        Gretton 2012 (JMLR 13), equation 3; Tolstikhin 2018, arXiv 1711.01558, algorithm 2 and section 4 ("imq");
        Zhao 2017, arXiv 1706.02262 ("gaussian"); Li 2015, arXiv 1502.02761 ("mixed").
    """

    unit: ClassVar[str] = "kernel units"

    def __init__(
        self,
        *,
        kernel: Literal["imq", "gaussian", "mixed"] = "imq",
        scales: Annotated[list[Positive], Field(min_length=1)] | None = None,
    ) -> None:
        self.kernel = kernel
        self.scales = scales

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in kernel units; 0 for a batch of one sentence, which has no pairs."""
        z = gather_rows(z[0])  # (B, D), one draw a sentence
        if len(z) < 2:
            return z.sum() * 0.0
        return mmd(z, draw(prior, len(z)), self._kernel, total_variance(prior))

    def _kernel(self, squared: Tensor, variance: float) -> Tensor:
        scales = self.scales or ([1.0] if self.kernel == "gaussian" else [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
        result = torch.zeros_like(squared)
        for scale in scales:
            constant = 2.0 * variance * scale
            if self.kernel == "imq":
                result = result + constant / (constant + squared)
            else:
                result = result + torch.exp(-squared / constant)
        return result


class SlicedWasserstein:
    """The p-th power of the sliced p-Wasserstein distance between the aggregate posterior and the prior.

    SW = mean over directions theta of mean_i |sort(theta . z)_i - sort(theta . p)_i|^p, with fresh directions at
    each call. Biased: above 0 at q = p by O(1/B), for the sampling error of both sides is itself a distance.

    Args:
        projections: directions, uniform on the sphere; their error falls with the root of their number.
        p: the power, 1 or 2. Of N(m, I) against N(0, I), p = 2 gives |m|^2 / D.

    References:
        Bonneel 2015 (JMIV 51); Kolouri 2018, arXiv 1804.01947.
    """

    unit: ClassVar[str] = "latent units to the power p"

    def __init__(self, *, projections: Count = 64, p: Literal[1, 2] = 2) -> None:
        self.projections = projections
        self.p = p

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in latent units to the power p."""
        rows = gather_rows(z[0])  # (B, D)
        return sliced(rows, draw(prior, len(rows)), _directions(rows, self.projections), self.p).mean()


class MaxSlicedWasserstein:
    """The p-th power of the p-Wasserstein distance along the direction where it is largest.

    max over |theta| = 1 of W_p^p(theta . z, theta . p), sought by gradient ascent from several random directions
    at once: a lower bound of the maximum, and biased as `SlicedWasserstein` is, more so as the direction is chosen.

    Args:
        starts: random directions to begin with.
        steps: gradient steps each takes; the best direction ever met counts.
        step_size: length of a step, before the direction is scaled back to the sphere; it falls as 1/root(step).
        p: the power, 1 or 2. Of N(m, I) against N(0, I), p = 2 gives |m|^2.

    References:
        Deshpande 2019, arXiv 1904.05877.
    """

    unit: ClassVar[str] = "latent units to the power p"

    def __init__(
        self,
        *,
        starts: Count = 8,
        steps: Annotated[int, Field(ge=0)] = 10,
        step_size: Positive = 0.5,
        p: Literal[1, 2] = 2,
    ) -> None:
        self.starts = starts
        self.steps = steps
        self.step_size = step_size
        self.p = p

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in latent units to the power p."""
        rows = gather_rows(z[0])  # (B, D)
        drawn = draw(prior, len(rows))
        with torch.no_grad():
            best = self._ascend(rows, drawn)
        return sliced(rows, drawn, best, self.p).squeeze(0)

    def _ascend(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """The best direction found, (D, 1)."""
        directions = _directions(rows, self.starts)  # (D, K)
        best, value = self._best(rows, drawn, directions)
        for step in range(1, self.steps + 1):
            gradient = _sliced_gradient(rows, drawn, directions, self.p)
            length = self.step_size / step**0.5
            directions = torch.nn.functional.normalize(
                directions + length * torch.nn.functional.normalize(gradient, dim=0), dim=0
            )
            candidate, found = self._best(rows, drawn, directions)
            best, value = torch.where(found > value, candidate, best), torch.maximum(found, value)
        return best

    def _best(self, rows: Tensor, drawn: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The best of directions (D, K), (D, 1), and its value, (1,)."""
        values = sliced(rows, drawn, directions, self.p)
        place = values.argmax()[None]
        return directions.index_select(1, place), values[place]


class GaussianW2:
    """The squared 2-Wasserstein distance between Gaussians, in closed form.

    W2^2(N(m, C), N(n, T)) = |m - n|^2 + tr(C + T - 2 (T^1/2 C T^1/2)^1/2); for diagonal ones |m - n|^2 + |s - t|^2.

    Args:
        over: "sentence": of each q(z|x), exact. "aggregate": of the aggregate posterior's first two moments over
            all processes' sentences, m = E mu and C = Cov(mu) + diag(E sigma^2); biased by O(1/B) where the
            means differ, and blind to all but the moments.

    References:
        Olkin & Pukelsheim 1982; Tolstikhin 2018, arXiv 1711.01558; Patrini 2018, arXiv 1810.01118.
    """

    unit: ClassVar[str] = "latent units squared"

    def __init__(self, *, over: Literal["sentence", "aggregate"] = "sentence") -> None:
        self.over = over

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,), or () for the aggregate (0 for one sentence), in latent units squared.

        Raises:
            ValueError: a distribution that is not Gaussian; "sentence" needs diagonal ones.
        """
        q, p = diagonal_gaussian(posterior), diagonal_gaussian(prior)
        full = self.over == "aggregate" and isinstance(prior, MultivariateNormal)
        if q is None or (p is None and not full):
            name, other = ("posterior", posterior) if q is None else ("prior", prior)
            allowed = "diagonal Gaussians" if self.over == "sentence" else "Gaussians"
            raise ValueError(
                f"w2 has a closed form only between {allowed}; the {name} is {shown(other)}. "
                "Use kind: sliced_wasserstein"
            )
        if self.over == "sentence":
            assert p is not None
            return (q.loc - p.loc).square().sum(-1) + (q.scale - p.scale).square().sum(-1)
        means, variances = gather_rows(q.loc), gather_rows(q.scale.square())  # (B, D)
        if len(means) < 2:
            return means.sum() * 0.0
        covariance = torch.cov(means.T).reshape(means.shape[1], -1) + variances.mean(0).diag()
        target = prior.covariance_matrix if isinstance(prior, MultivariateNormal) else prior.variance.diag()
        return gaussian_w2(means.mean(0), covariance, prior.mean, target)


class Sinkhorn:
    """The debiased entropic transport cost (Sinkhorn divergence) between the aggregate posterior and the prior.

    S = OT(z, p) - (OT(z, z) + OT(p, p)) / 2, with OT = min over plans of E |x - y|^2 + e KL(plan || product) and
    e = epsilon * 2 D (2 D is the mean squared distance of two draws from N(0, I)). Between the squared Wasserstein
    distance (e to 0) and an MMD (e to infinity); never below 0 but for what the iterations leave.

    Biased: above 0 at q = p, falling with B, and slowly in many dimensions, where few draws of the prior lie near a
    row and shrinking towards their middle pays. With 128 sentences in 32 dimensions the best N(0, s^2 I) has s about
    0.75 (epsilon 0.05: 0.5 or less); there `mmd` and `sliced_wasserstein` keep it at 1.

    Args:
        epsilon: the blur; the less, the more bias and the more iterations.
        iterations: of log-domain updates; the blur falls by halves from the largest distance down to e. 20 leave
            an error under 0.1 % at the default epsilon; 0.05 needs 50.

    References:
        Feydy 2019, arXiv 1810.08278, equations 3 and 20; Genevay 2018, arXiv 1706.00292.
    """

    unit: ClassVar[str] = "latent units squared"

    def __init__(self, *, epsilon: Positive = 0.5, iterations: Count = 20) -> None:
        self.epsilon = epsilon
        self.iterations = iterations

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in latent units squared."""
        rows = gather_rows(z[0])  # (B, D)
        return sinkhorn(rows, draw(prior, len(rows)), self.epsilon * 2.0 * total_variance(prior), self.iterations)


def total_variance(prior: Distribution) -> float:
    """Returns what kernels and blurs take for the prior's variance over all dimensions: half a mean squared distance.

    D, as N(0, I) has it, also where a prior learns; 1 on the unit sphere, where every point is as near to 0.
    """
    return 1.0 if isinstance(prior, UniformSphere) else float(prior.event_shape[0])


def mmd(z: Tensor, p: Tensor, kernel: Callable[[Tensor, float], Tensor], variance: float) -> Tensor:
    """Returns the unbiased squared MMD, (), between rows z (B, D) and p (B, D).

    Args:
        z: draws from one distribution.
        p: as many draws from the other.
        kernel: (squared distances, variance) -> kernel values.
        variance: of the prior over all dimensions, as `total_variance` gives it.
    """
    count = len(z)
    off_diagonal = 1.0 - torch.eye(count, dtype=z.dtype, device=z.device)
    within = kernel(_squared_distances(z, z), variance) + kernel(_squared_distances(p, p), variance)
    between = kernel(_squared_distances(z, p), variance)
    return (within * off_diagonal).sum() / (count * (count - 1)) - 2.0 * between.mean()


def sliced(z: Tensor, p: Tensor, directions: Tensor, power: int) -> Tensor:
    """Returns W^power, (K,), between rows z (B, D) and p (B, D) along each of the directions (D, K)."""
    gaps = (z @ directions).sort(0).values - (p @ directions).sort(0).values  # (B, K)
    return gaps.abs().pow(power).mean(0)


def gaussian_w2(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Returns the squared 2-Wasserstein distance, (), between two Gaussians of means (D,) and covariances (D, D)."""
    # tr (T^1/2 C T^1/2)^1/2 = tr (L' C L)^1/2 for any T = L L': the two have the same eigenvalues.
    factor = torch.linalg.cholesky(other_covariance)
    cross: Tensor = torch.linalg.eigvalsh(factor.T @ covariance @ factor).clamp_min(0).sqrt().sum()
    return (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2.0 * cross


def sinkhorn(z: Tensor, p: Tensor, blur: float, iterations: int) -> Tensor:
    """Returns the Sinkhorn divergence, (), between rows z (B, D) and p (B', D) under the squared distance."""
    return _transport(z, p, blur, iterations) - 0.5 * (
        _transport(z, z, blur, iterations) + _transport(p, p, blur, iterations)
    )


def _transport(x: Tensor, y: Tensor, blur: float, iterations: int) -> Tensor:
    with torch.no_grad():
        cost = _squared_distances(x, y)
        f, g = x.new_zeros(len(x)), y.new_zeros(len(y))
        largest = cost.max()
        for step in range(iterations):
            level = (largest * 0.5**step).clamp_min(blur)
            # Both from the old ones and averaged: the two sides stay alike, and OT(x, x) settles at once.
            f, g = (f + _soft_minimum(cost, g, level)) / 2, (g + _soft_minimum(cost.T, f, level)) / 2
    # At the optimum the potentials' own change does not count (envelope theorem): each side's last
    # update carries the gradient of its own points alone.
    eps = torch.as_tensor(blur).to(cost)
    last_f = _soft_minimum(_squared_distances(x, y.detach()), g, eps)
    last_g = _soft_minimum(_squared_distances(y, x.detach()), f, eps)
    return last_f.mean() + last_g.mean()


def _soft_minimum(cost: Tensor, potential: Tensor, blur: Tensor) -> Tensor:
    """-e log mean_j exp((g_j - C_ij) / e), one value a row of the cost."""
    log_mean = torch.log(torch.full_like(potential, 1.0 / len(potential)))
    return -torch.logsumexp(log_mean + (potential - cost) / blur, dim=1) * blur


def _directions(rows: Tensor, count: int) -> Tensor:
    """Uniform directions on the sphere, (D, count)."""
    return torch.nn.functional.normalize(torch.randn(rows.shape[1], count, dtype=rows.dtype, device=rows.device), dim=0)


def _sliced_gradient(z: Tensor, p: Tensor, directions: Tensor, power: int) -> Tensor:
    """The gradient of `sliced` in the directions, up to a positive factor, (D, K)."""
    along_z, order_z = (z @ directions).sort(0)  # (B, K)
    along_p, order_p = (p @ directions).sort(0)
    gaps = along_z - along_p if power == 2 else (along_z - along_p).sign()
    return torch.einsum("bk,bkd->dk", gaps, z[order_z] - p[order_p])


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # By differences: |x|^2 + |y|^2 - 2xy loses the small distances that a kernel cares about most.
    return (x[:, None] - y[None]).square().sum(-1)
