"""What latents know: linear and nearest-neighbour probes with few and many labels, and similarity of pairs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from textvae.errors import UserError
from textvae.evaluation.correlation import pearson, spearman

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
HELD_OUT = 0.2
ITERATIONS = 500
REPEATS = 5
PAIRS_AT_ONCE = 2**22

Labels = Sequence[Hashable] | Tensor


class Probe(NamedTuple):
    """What a classifier on frozen latents says of the test sentences."""

    accuracy: float  # 0 to 1
    majority: float  # accuracy of always saying the most frequent training label
    chosen: float  # the penalty, or the number of neighbours, that was best on the held-out part
    labels: int  # training sentences


class Similarity(NamedTuple):
    """How the cosine of two sentences' latents goes with what people say, -1 to 1."""

    pearson: float
    spearman: float


def linear_probe(
    train_z: Tensor,
    train_labels: Labels,
    test_z: Tensor,
    test_labels: Labels,
    *,
    penalties: Sequence[float] = PENALTIES,
    held_out: float = HELD_OUT,
    generator: torch.Generator | None = None,
) -> Probe:
    """Returns the accuracy of multinomial logistic regression on latents standardised by the training part.

    min_W,b mean cross entropy + (penalty / 2) |W|^2, by L-BFGS in float64. The penalty with the lowest cross entropy on
    a held-out share of the training part is taken, and the probe fitted again on all of it.

    Args:
        train_z: (N, D) latents.
        train_labels: N labels, of any kind.
        test_z: (M, D).
        test_labels: M labels; one that training has not is an error of the probe, and counts.
        penalties: to choose from.
        held_out: share of the training part, 0 to 1.
        generator: of the choice of what is held out; the global state where absent.

    Raises:
        UserError: shapes that do not fit, latents that are not finite, no sentence, fewer than 2 labels, no penalty,
            one that is not above 0, or a held_out outside (0, 1).

    References:
        Alain & Bengio 2016, arXiv 1610.01644.
    """
    if not penalties or min(penalties) <= 0:
        raise UserError(f"penalties: got {list(penalties)}; at least one is needed, and each above 0")
    x, y, test_x, test_y, classes = _data(train_z, train_labels, test_z, test_labels)
    fit, held = _split(y, held_out, generator)
    chosen = max(penalties)
    if len(penalties) > 1 and len(held):
        # Not by accuracy, which has but a few values where few are held out.
        losses = {p: F.cross_entropy(_linear(x[fit], y[fit], x[held], p, classes), y[held]) for p in penalties}
        chosen = min(penalties, key=lambda penalty: float(losses[penalty]))
    predicted = _linear(x, y, test_x, chosen, classes).argmax(-1)
    return Probe(_accuracy(predicted, test_y), _majority(y, test_y), float(chosen), len(y))


def knn_probe(
    train_z: Tensor,
    train_labels: Labels,
    test_z: Tensor,
    test_labels: Labels,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    held_out: float = HELD_OUT,
    generator: torch.Generator | None = None,
) -> Probe:
    """Returns the accuracy of a vote of the k nearest training sentences, Euclidean distance, latents as they are.

    k with the highest accuracy on a held-out share of the training part is taken (of equal ones the smallest), and all
    of it then votes. Of labels with equally many votes the one whose nearest voter is nearest wins.

    Args:
        train_z: (N, D) latents.
        train_labels: N labels, of any kind.
        test_z: (M, D).
        test_labels: M labels.
        neighbours: values of k to choose from; those above the number of training sentences are left out.
        held_out: share of the training part, 0 to 1.
        generator: of the choice of what is held out; the global state where absent.

    Raises:
        UserError: as `linear_probe`; no k, or one that is not above 0.
    """
    if not neighbours or min(neighbours) < 1:
        raise UserError(f"neighbours: got {list(neighbours)}; at least one is needed, and each above 0")
    x, y, test_x, test_y, classes = _data(train_z, train_labels, test_z, test_labels)
    fit, held = _split(y, held_out, generator)
    best, chosen = -1.0, min(min(neighbours), len(y))
    candidates = sorted(k for k in set(neighbours) if k <= len(fit))
    if len(candidates) > 1 and len(held):
        near = _nearest(x[held], x[fit], max(candidates))
        for k in candidates:
            found = _accuracy(_vote(y[fit][near[:, :k]], classes), y[held])
            if found > best:
                best, chosen = found, k
    predicted = _vote(y[_nearest(test_x, x, chosen)], classes)
    return Probe(_accuracy(predicted, test_y), _majority(y, test_y), float(chosen), len(y))


def few(labels: Labels, per_label: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns the rows of `per_label` sentences of each label (all of a rarer one), drawn without replacement.

    Args:
        labels: N labels.
        per_label: how many of each.
        generator: of the draw; the global state where absent.

    Returns:
        Rows, (K,) int64, rising.

    Raises:
        UserError: no labels, or per_label below 1.
    """
    if not len(labels) or per_label < 1:
        raise UserError(f"few labels: got {len(labels)} labels and {per_label} of each; both must be 1 or more")
    codes = torch.tensor(_codes(labels, {}))
    order = torch.randperm(len(codes), generator=generator)
    rows = [order[codes[order] == code][:per_label] for code in range(int(codes.max()) + 1)]
    return torch.cat(rows).sort().values


def probes(
    train_z: Tensor,
    train_labels: Labels,
    test_z: Tensor,
    test_labels: Labels,
    *,
    per_label: Sequence[int | None] = (10, 100, None),
    repeats: int = REPEATS,
    generator: torch.Generator | None = None,
    on_step: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Returns both probes with few and many labels.

    Args:
        train_z: (N, D) latents.
        train_labels: N labels.
        test_z: (M, D).
        test_labels: M labels.
        per_label: training sentences of each label; None is all there are.
        repeats: draws of the few, over which the mean is taken.
        generator: of all draws; the global state where absent.
        on_step: called after each probe, to show that it goes on.

    Returns:
        A row for each of `per_label`: per_label, labels (training sentences), linear and knn (mean accuracy, 0 to 1),
        linear_spread and knn_spread (standard deviation over the draws; None for one), majority.

    Raises:
        UserError: as the probes.
    """
    if repeats < 1 or not per_label:
        raise UserError(f"probes: got {repeats} repeats of {len(per_label)} sizes; both must be 1 or more")
    labels, rows_of = list(_listed(train_labels)), []
    for size in per_label:
        found: dict[str, list[Probe]] = {"linear": [], "knn": []}
        for _ in range(1 if size is None else repeats):
            rows = torch.arange(len(labels)) if size is None else few(labels, size, generator=generator)
            some_z, some = train_z[rows.to(train_z.device)], [labels[row] for row in rows.tolist()]
            for name, probe in (("linear", linear_probe), ("knn", knn_probe)):
                found[name].append(probe(some_z, some, test_z, test_labels, generator=generator))
                if on_step is not None:
                    on_step()
        row: dict[str, Any] = {"per_label": size, "labels": found["linear"][0].labels}
        for name, results in found.items():
            accuracies = np.asarray([result.accuracy for result in results])
            row[name] = float(accuracies.mean())
            row[f"{name}_spread"] = float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None
        rows_of.append({**row, "majority": found["linear"][0].majority})
    return rows_of


def similarity(first: Tensor, second: Tensor, scores: ArrayLike) -> Similarity:
    """Returns how the cosine of two sentences' latents goes with their gold similarity (stsb).

    Args:
        first: (N, D) latents of the pairs' first sentences; a row of zeros has cosine 0 with any other.
        second: (N, D) of the second ones.
        scores: (N,) gold similarities, any scale.

    Raises:
        UserError: shapes that do not fit, numbers that are not finite, or a constant row, whose correlation is not
            defined (latents that do not depend on the sentence give one).

    References:
        Cer 2017 (STS benchmark), arXiv 1708.00055.
    """
    if first.shape != second.shape or first.dim() != 2:
        raise UserError(f"similarity: got latents {tuple(first.shape)} and {tuple(second.shape)}; both must be (N, D)")
    cosine = F.cosine_similarity(first.double(), second.double(), dim=-1).cpu().numpy()
    # Rounding alone is no correlation: latents that are all the same have cosines that differ in the last bits.
    cosine = np.round(cosine, 9)
    return Similarity(pearson(cosine, scores), spearman(cosine, scores))


def _listed(labels: Labels) -> Sequence[Hashable]:
    return labels.tolist() if hasattr(labels, "tolist") else labels


def _codes(labels: Labels, known: dict[Hashable, int], *, new: bool = True) -> list[int]:
    """Labels as numbers by first occurrence; -1 for one that is not known where none may be added."""
    return [known.setdefault(label, len(known)) if new else known.get(label, -1) for label in _listed(labels)]


def _data(
    train_z: Tensor, train_labels: Labels, test_z: Tensor, test_labels: Labels
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    for name, z, labels in (("training", train_z, train_labels), ("test", test_z, test_labels)):
        if z.dim() != 2 or z.shape[0] != len(labels) or not len(labels):
            raise UserError(f"probe, {name} part: got latents {tuple(z.shape)} and {len(labels)} labels; (N, D) and N")
        if not z.isfinite().all():
            raise UserError(f"probe, {name} part: some latents are not finite")
    if train_z.shape[1] != test_z.shape[1]:
        raise UserError(f"probe: training latents have {train_z.shape[1]} dimensions, test latents {test_z.shape[1]}")
    known: dict[Hashable, int] = {}
    y = torch.tensor(_codes(train_labels, known))
    if len(known) < 2:
        raise UserError(f"probe: a classifier needs 2 labels or more; the training part has {list(known)}")
    test_y = torch.tensor(_codes(test_labels, known, new=False))
    return train_z.detach().cpu().double(), y, test_z.detach().cpu().double(), test_y, len(known)


def _split(y: Tensor, held_out: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows held out; the first sentence drawn of each label is always fitted on."""
    if not 0 < held_out < 1:
        raise UserError(f"held_out: got {held_out}; it is a share above 0 and below 1")
    order = torch.randperm(len(y), generator=generator)
    first = torch.stack([(y[order] == code).nonzero()[0, 0] for code in range(int(y.max()) + 1)])
    kept = torch.zeros(len(y), dtype=torch.bool)
    kept[first] = True
    order = torch.cat([order[kept], order[~kept]])
    count = min(round(held_out * len(y)), int((~kept).sum()))
    return order[: len(y) - count], order[len(y) - count :]


def _linear(x: Tensor, y: Tensor, test_x: Tensor, penalty: float, classes: int) -> Tensor:
    """(M, C) logits; also where the caller is in inference mode, whose tensors autograd refuses."""
    with torch.inference_mode(False), torch.enable_grad():
        return _fitted(x.clone(), y.clone(), test_x.clone(), penalty, classes)


def _fitted(x: Tensor, y: Tensor, test_x: Tensor, penalty: float, classes: int) -> Tensor:
    mean, scale = x.mean(0), x.std(0, correction=0)
    # A dimension that hardly varies says nothing, and must not be blown up.
    scale = torch.where(scale > 1e-8 * x.abs().amax(0).clamp_min(1e-30), scale, torch.inf)
    x, test_x = (x - mean) / scale, (test_x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return test_x @ weight.detach().T + bias.detach()


def _nearest(queries: Tensor, x: Tensor, k: int) -> Tensor:
    """(M, k) rows of x, nearest first."""
    # One place for all: small parts that stay would lie between the distances' blocks, and keep the heap from using
    # these again (3 GB for 60,000 sentences).
    found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    at_once = max(1, PAIRS_AT_ONCE // len(x))
    for some, rows in zip(queries.split(at_once), found.split(at_once)):
        distances = torch.cdist(some, x, compute_mode="donot_use_mm_for_euclid_dist")
        rows.copy_(distances.topk(k, largest=False).indices)
    return found


def _vote(labels: Tensor, classes: int) -> Tensor:
    """(M,) the most frequent label of each row (M, k); of equal ones the one that comes first in the row."""
    votes = F.one_hot(labels, classes).sum(1)  # (M, C)
    own = votes.gather(1, labels)  # (M, k) votes of each neighbour's label
    return labels.gather(1, own.argmax(1, keepdim=True)).squeeze(1)


def _accuracy(predicted: Tensor, y: Tensor) -> float:
    return float((predicted == y).double().mean())


def _majority(y: Tensor, test_y: Tensor) -> float:
    return float((test_y == y.bincount().argmax()).double().mean())
