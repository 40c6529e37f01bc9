"""Priors fitted after training to the aggregate posterior q(z) = (1/N) sum_n q(z|x_n)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from textvae.errors import CheckpointError, MissingExtraError, UserError, suggest
from textvae.latent.flows import FlowPrior
from textvae.latent.priors import MixturePrior
from textvae.registry import Registry
from textvae.seeds import set_aside

FLOW_STEPS = 1000
FLOW_ROWS = 256  # a step
FLOW_RATE = 3e-3  # at the start; falls to 0 along a cosine
SMALLEST_SHARE = 1e-6  # of the data's variance: a component cannot shrink onto one row


class FullGaussian(nn.Module):
    """p(z) = N(m, L L^T), with a full covariance; nothing is learned.

    Args:
        latent_dim: D.
    """

    loc: Tensor
    scale_tril: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("scale_tril", torch.eye(latent_dim))

    def forward(self) -> Distribution:
        """Returns p(z), event (D,)."""
        return MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)


FITTED = Registry("fitted prior", {"gaussian": FullGaussian, "mixture": MixturePrior, "flow": FlowPrior})


def fit(
    kind: str,
    means: Tensor,
    scales: Tensor | None = None,
    *,
    components: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Fits a prior to the aggregate posterior, for sampling from a model whose latents missed the prior it had.

    gaussian: mean and full covariance, Cov(mu) + diag(E sigma^2). mixture: diagonal Gaussians by EM on one draw of
    each posterior. flow: masked autoregressive, by maximum likelihood on fresh draws, a tenth of the rows held out
    to stop by.

    Args:
        kind: "gaussian", "mixture" or "flow".
        means: (N, D) posterior means.
        scales: (N, D) posterior standard deviations; none for a plain autoencoder.
        components: of the mixture.
        generator: of all randomness; it lives on the CPU. Torch's global state is left as it was.

    Returns:
        A prior: forward() gives p(z), float32, batch (), event (D,). Its state_dict() and kind are what `restore`
        needs.

    Raises:
        UserError: as `check`, or rows that are not finite.

    References:
        Ghosh 2020, arXiv 1903.12436, section 4 ("ex-post density estimation"); Dempster 1977 (EM).
    """
    check(kind, components, len(means))
    # The caller may be evaluating, where tensors cannot be trained on.
    with torch.inference_mode(False), torch.no_grad():
        rows = means.detach().cpu().double().clone()
        widths = torch.zeros_like(rows) if scales is None else scales.detach().cpu().double().clone()
        if not (rows.isfinite().all() and widths.isfinite().all()):
            raise UserError("the posteriors' means or scales are not finite numbers: no prior can be fitted to them")
        if kind == "gaussian":
            prior: nn.Module = _fit_gaussian(rows, widths)
        elif kind == "mixture":
            prior = _fit_mixture(rows + widths * _noise(rows, generator), components, generator)
        else:
            prior = _fit_flow(rows, widths, generator)
    return _named(prior.to(means.device), kind)


def check(kind: str, components: int, rows: int) -> None:
    """Says what keeps a prior from being fitted, before the sentences are encoded for it.

    Args:
        kind: "gaussian", "mixture" or "flow".
        components: of the mixture.
        rows: how many sentences there are.

    Raises:
        UserError: an unknown kind, components that are no number above 0, or too few rows.
    """
    _check_kind(kind)
    if kind == "mixture" and not (isinstance(components, numbers.Integral) and components > 0):
        raise UserError(f"components: got {components!r}; a mixture has 1 or more")
    needed = {"gaussian": 2, "mixture": components, "flow": 20}[kind]
    if rows < needed:
        raise UserError(f"a fitted prior {kind!r} needs {needed} sentences or more, and there are {rows}")


def restore(kind: str, state: Mapping[str, Tensor], latent_dim: int, where: str = "fitted prior") -> nn.Module:
    """Returns the prior that `fit` made, from its kind and its state_dict().

    Args:
        kind: gaussian, mixture or flow.
        state: of that kind.
        latent_dim: D of the run that it was fitted to.
        where: names its file in errors.

    Raises:
        CheckpointError: an unknown kind, or a state that is not of such a prior or of another D.
    """
    try:
        _check_kind(kind)
        dimensions = state[{"gaussian": "loc", "mixture": "start", "flow": "shift"}[kind]].shape[-1]
        if dimensions != latent_dim:
            raise UserError(f"it has {dimensions} dimensions, and the run {latent_dim}")
        options = {"components": len(state["logits"])} if kind == "mixture" else {}
        with torch.random.fork_rng(devices=[]):  # what it draws is overwritten
            prior: nn.Module = FITTED.build({"kind": kind, **options}, dimensions)
        prior.load_state_dict(dict(state))
    except MissingExtraError:
        raise
    except (UserError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: holds no fitted prior of this run ({error}); fit-prior makes it anew"
        ) from error
    return _named(prior, kind)


def kind_of(prior: nn.Module) -> str:
    """Returns the kind of a prior that `fit` or `restore` made."""
    return next(kind for kind in FITTED if FITTED.resolve(kind) is type(prior))


def _named(prior: nn.Module, kind: str) -> nn.Module:
    setattr(prior, "kind", kind)  # noqa: B010  # torch types attributes as tensors and modules
    return prior.requires_grad_(False).eval()


def _check_kind(kind: str) -> None:
    if kind not in FITTED:
        raise UserError(f"kind: got {kind!r}, which is no fitted prior{suggest(kind, FITTED)}")


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _fit_gaussian(means: Tensor, scales: Tensor) -> FullGaussian:
    prior = FullGaussian(means.shape[1])
    covariance = torch.cov(means.T, correction=0).reshape(means.shape[1], means.shape[1])
    covariance = covariance + scales.square().mean(0).diag()
    # Dimensions that never vary leave it singular.
    floor = SMALLEST_SHARE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    covariance = covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype)
    prior.loc.copy_(means.mean(0))
    prior.scale_tril.copy_(torch.linalg.cholesky(covariance))
    return prior


def _fit_mixture(rows: Tensor, components: int, generator: torch.Generator | None) -> MixturePrior:
    found = em(rows, components, generator=generator)
    with torch.random.fork_rng(devices=[]):  # the start it draws is overwritten
        prior = MixturePrior(rows.shape[1], components=components)
    prior.start.copy_(found[1])
    prior.log_scale.copy_(found[2].log())
    prior.logits.copy_(found[0].log())
    return prior


def em(
    rows: Tensor,
    components: int,
    *,
    generator: torch.Generator | None = None,
    iterations: int = 300,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Fits a mixture of diagonal Gaussians by expectation maximisation, started by k-means++.

    Args:
        rows: (N, D) float64.
        components: K <= N.
        generator: of the start.
        iterations: at most so many.
        tolerance: stops where the log-likelihood gains less, nats a row.

    Returns:
        Weights (K,), means (K, D), scales (K, D), and the log-likelihood before each step, nats a row: it never falls.

    References:
        Arthur & Vassilvitskii 2007 (k-means++); Bishop 2006, section 9.2.2.
    """
    count = len(rows)
    centre, floor = rows.mean(0), SMALLEST_SHARE * rows.var(0, correction=0) + torch.finfo(torch.float32).tiny
    rows = rows - centre  # so that the squares below cancel as little as they can
    squares = torch.cat([rows, rows.square()], -1)  # (N, 2D)
    nearest = torch.cdist(rows, _spread_out(rows, components, generator)).argmin(-1)
    shares = nn.functional.one_hot(nearest, components).to(rows)  # (N, K), the responsibilities
    path: list[float] = []
    while True:
        sizes = shares.sum(0).clamp_min(1e-10)  # (K,)
        weights = sizes / sizes.sum()
        means, second = (shares.T @ squares / sizes[:, None]).chunk(2, -1)  # (K, D) each
        variances = torch.maximum(second - means.square(), floor)
        # log N(z; m, s^2) is linear in (z, z^2): one matrix product instead of N x K x D differences.
        constant = -0.5 * (means.square() / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        linear = torch.cat([means / variances, -0.5 / variances], -1)
        joint = torch.addmm(constant + weights.log(), squares, linear.T)  # (N, K)
        total = torch.logsumexp(joint, -1, keepdim=True)
        path.append(float(total.sum()) / count)
        if len(path) >= iterations or (len(path) > 1 and path[-1] - path[-2] < tolerance):
            return weights, means + centre, variances.sqrt(), path
        shares = torch.exp(joint - total)


def _spread_out(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """(count, D) rows, each drawn in proportion to its squared distance from the nearest drawn before."""
    chosen = [rows[torch.randint(len(rows), (), generator=generator)]]
    distance = torch.full((len(rows),), math.inf, dtype=rows.dtype)
    while len(chosen) < count:
        distance = torch.minimum(distance, (rows - chosen[-1]).square().sum(-1))
        # Where all rows are taken, as with repeated rows, any will do.
        odds = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        chosen.append(rows[int(torch.multinomial(odds, 1, generator=generator))])
    return torch.stack(chosen)


def _fit_flow(means: Tensor, scales: Tensor, generator: torch.Generator | None) -> FlowPrior:
    dimensions = means.shape[1]
    means, scales = means.float(), scales.float()
    with set_aside(int(torch.randint(2**62, (), generator=generator))):
        prior = FlowPrior(dimensions)
    prior.shift.copy_(means.mean(0))
    width = (means.var(0, correction=0) + scales.square().mean(0)).sqrt()
    prior.stretch.copy_(width.clamp_min(math.sqrt(SMALLEST_SHARE) * float(width.mean()) + 1e-12))
    order = torch.randperm(len(means), generator=generator)
    held, train = order[: len(order) // 10], order[len(order) // 10 :]
    checked = means[held] + scales[held] * _noise(means[held], generator)
    optimizer = torch.optim.Adam(prior.parameters(), lr=FLOW_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FLOW_STEPS)
    best, state = math.inf, {name: value.clone() for name, value in prior.state_dict().items()}
    for step in range(FLOW_STEPS):
        chosen = train[torch.randint(len(train), (FLOW_ROWS,), generator=generator)]
        z = means[chosen] + scales[chosen] * _noise(means[chosen], generator)
        with torch.enable_grad():
            loss = -prior().log_prob(z).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        rate.step()
        if step % 50 == 49 or step == FLOW_STEPS - 1:
            nats = -float(prior().log_prob(checked).mean())
            if nats < best:
                best, state = nats, {name: value.clone() for name, value in prior.state_dict().items()}
    prior.load_state_dict(state)
    return prior
