"""Attributes as directions: vectors from labelled sentences, and analogies."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.generation import given

if TYPE_CHECKING:
    from textvae.api import TextVAE


class AttributeVector(NamedTuple):
    """The way from one label's latents to another's."""

    vector: Tensor  # (D,) float32; 1 times it leads from one mean to the other
    source: Hashable  # None: all other labels
    target: Hashable


def direction(source_z: Tensor, target_z: Tensor) -> Tensor:
    """Returns the step from latents without an attribute to latents with it, mean(target) - mean(source).

    The normal of a logistic regression, scaled to the same difference, was tried beside it and left out: on the
    built-in corpus it changed fewer sentences (past to future 91 % for 92 %, negative to positive 27 % for 68 %), and
    on Yelp it bought no more change for the words it kept.

    Args:
        source_z: (N, D).
        target_z: (M, D).

    Returns:
        (D,) float32.

    Raises:
        UserError: no latent on one side, or widths that differ.

    References:
        Larsen 2016, arXiv 1512.09300; White 2016, arXiv 1609.04468.
    """
    if source_z.dim() != 2 or source_z.shape[1:] != target_z.shape[1:] or not len(source_z) or not len(target_z):
        shapes = f"{tuple(source_z.shape)} and {tuple(target_z.shape)}"
        raise UserError(f"direction: got latents of shapes {shapes}; (N, D) and (M, D), N and M above 0, are needed")
    return (target_z.cpu().double().mean(0) - source_z.cpu().double().mean(0)).float()


def attribute_vector(
    vae: TextVAE,
    texts: Sequence[str],
    labels: Iterable[Hashable],
    *,
    target: Hashable,
    source: Hashable = None,
) -> AttributeVector:
    """Returns the vector of an attribute from labelled sentences.

    Args:
        vae: a run.
        texts: N sentences, hundreds of each label.
        labels: N labels, texts or numbers.
        target: the label to go to.
        source: the one to come from; all other labels where absent.

    Raises:
        UserError: other numbers of labels than texts, or labels that no sentence has or that are the same.
    """
    texts = given.texts(texts)
    labels = given.labels(labels, len(texts))
    known = sorted(set(labels), key=str)
    for name, label in (("target", target), ("source", source)):
        if label is not None and label not in known:
            raise UserError(f"{name}: no sentence has the label {label!r}{suggest(label, known)}")
    if source == target or known == [target]:
        raise UserError(
            f"source: got {source or target!r}, the target itself; there must be another label to come from"
        )
    rows = [i for i, label in enumerate(labels) if source is None or label in (target, source)]
    z = vae.encode([texts[i] for i in rows])
    there = torch.tensor([labels[i] == target for i in rows])
    return AttributeVector(direction(z[~there], z[there]), source, target)


def shift(
    vae: TextVAE,
    texts: Sequence[str],
    vector: AttributeVector | Tensor | Sequence[float],
    *,
    strength: float = 1.0,
    seed: int | None = None,
    **options: Any,
) -> list[str]:
    """Returns each text decoded from its posterior mean plus strength times the vector; row i belongs to text i.

    Greedily unless `method` says otherwise; other options are of decoding. A strength below 0 leads back.

    Raises:
        UserError: a vector of another width or of no numbers, or a strength beyond 1,000.
    """
    step = _step(vae, vector.vector if isinstance(vector, AttributeVector) else vector)
    strength = given.size(strength, "strength")
    return vae.decode(vae.encode(texts) + strength * step, seed=seed, **{"method": "greedy", **options})


def analogy(
    vae: TextVAE, a: str, b: str, c: str, *, strength: float = 1.0, seed: int | None = None, **options: Any
) -> str:
    """Returns the text that is to c as b is to a: decoded from z_c + strength (z_b - z_a), the posterior means.

    Greedily unless `method` says otherwise; other options are of decoding.

    Raises:
        UserError: an empty sentence, or a strength beyond 1,000.

    References:
        Mikolov 2013, NAACL (linguistic regularities); Zhao 2018, arXiv 1706.04223 (on sentences).
    """
    a, b, c = (given.sentence(text, name) for text, name in ((a, "a"), (b, "b"), (c, "c")))
    return analogies(vae, [(a, b)], [c], strength=strength, seed=seed, **options)[0]


def analogies(
    vae: TextVAE,
    pairs: Sequence[tuple[str, str]],
    texts: Sequence[str],
    *,
    strength: float = 1.0,
    seed: int | None = None,
    **options: Any,
) -> list[str]:
    """Returns for each text c what is to it as b is to a, the mean over the pairs (a, b) of their differences.

    Args:
        vae: a run.
        pairs: 1 or more; several average out what in one pair is its own.
        texts: the sentences c.
        strength: of the step.
        seed: of decoding.
        **options: of decoding; greedily unless `method` says otherwise.

    Raises:
        UserError: no pair, or a strength beyond 1,000.
    """
    if not pairs:
        raise UserError("pairs: got none; an analogy has 1 or more")
    z = vae.encode([text for pair in pairs for text in pair]).unflatten(0, (-1, 2))  # (P, 2, D)
    return shift(vae, texts, (z[:, 1] - z[:, 0]).mean(0), strength=strength, seed=seed, **options)


def _step(vae: TextVAE, vector: Any) -> Tensor:
    try:
        step = torch.as_tensor(vector, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"vector: got {reprlib.repr(vector)}; {vae.latent_dim} numbers are needed") from None
    if step.shape != (vae.latent_dim,):
        raise UserError(f"vector: got shape {tuple(step.shape)}; it must be ({vae.latent_dim},), as the run's latents")
    return step
