"""What the explorer answers, without its page: plain functions of a run, texts in and texts out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from textvae.api import TextVAE
from textvae.errors import MissingExtraError, UserError
from textvae.evaluation.latents import kl_by_dimension
from textvae.explorer import limits
from textvae.generation.latent import path as latent_path
from textvae.text.batching import ListStore, evaluation_batches
from textvae.toolbox import Aggregate, AttributeVector, attribute_vector, path_along

STEPS = 11  # places of the slider on a walk
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
PLACES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # of a dimension
NEIGHBOURS = 5
KEPT_TO = 1000  # sentences that a walk along the data keeps to: its time grows with their square
KINDS = ("linear", "spherical", "data")
METHODS = ("sample", "greedy", "beam")
MAPS = ("PCA", "UMAP")

Rows = list[tuple[str, str]]


class Plane(NamedTuple):
    """A flat picture of the corpus: where each of its N sentences lies."""

    kind: str  # PCA or UMAP
    points: Tensor  # (N, 2)
    mean: Tensor  # (D,) of the latents
    axes: Tensor | None  # (2, D) orthonormal, of PCA; None where a place has no latent of its own


class Clicked(NamedTuple):
    """What lies at a place of a map."""

    decoded: str
    neighbours: list[tuple[float, str]]  # Euclidean distance in the latent space, text


class Views:
    """A run and the sentences of its map. The model answers one question at a time: torch's random state is one.

    Args:
        vae: a run.
        texts: N sentences to lay out on the map; may be empty.
        labels: for each attribute, N labels; an empty one says that the sentence has none. An attribute of fewer than
            two labels has nowhere to lead and is left out.
    """

    def __init__(
        self, vae: TextVAE, texts: Sequence[str] = (), labels: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.vae, self.texts = vae, list(texts) if vae.latent_dim else []
        known = {name: list(values) for name, values in (labels or {}).items()} if self.texts else {}
        self.labels = {name: values for name, values in known.items() if len(set(values) - {""}) > 1}
        self.model_lock, self.map_lock = threading.RLock(), threading.Lock()
        nothing = torch.zeros(0, vae.latent_dim)
        self.means, self.scales = vae.encode_distribution(self.texts) if self.texts else (nothing, nothing)
        self.planes: dict[str, Plane] = {}
        self.vectors: dict[tuple[str, str, str], AttributeVector] = {}

    @functools.cached_property
    def aggregate(self) -> Aggregate:
        """Where the map's sentences lie, for walks along them."""
        rows = spread(range(len(self.means)), KEPT_TO)
        return Aggregate(self.means[rows], self.scales[rows])

    def walk(self, first: str, last: str, kind: str = "linear", steps: float = STEPS) -> Rows:
        """Returns place (0 to 1) and text of points between two sentences' posterior means, decoded greedily.

        Args:
            first: a sentence.
            last: another.
            kind: linear, spherical or data, which keeps to where the map's sentences lie.
            steps: how many points, both ends included.

        Raises:
            UserError: names the field that cannot be used; so do all answers.
        """
        ends = [limits.text(first, "first sentence"), limits.text(last, "last sentence")]
        count = int(limits.number(steps, "steps", 2, limits.SENTENCES))
        limits.choice(kind, "path", KINDS)
        with self.model_lock:
            a, b = self.vae.encode(ends)
            if kind == "data":
                if len(self.texts) < 2:
                    raise UserError("path: data keeps to the corpus, and none was given (--corpus)")
                z = path_along(a, b, count, self.aggregate)
            else:
                z = latent_path(a, b, count, kind=cast(Any, kind))
            texts = self.vae.decode(z, method="greedy")
        return [(f"{place / (count - 1):.2f}", text) for place, text in enumerate(texts)]

    def sample(
        self, n: float = 10, temperature: float = 1.0, top_p: float = 1.0, method: str = "sample", seed: float = 0
    ) -> list[str]:
        """Returns n texts decoded from draws of the prior.

        Args:
            n: how many.
            temperature: of method `sample`; greedy and beam have none.
            top_p: likewise.
            method: sample, greedy or beam.
            seed: the same draws for the same seed.
        """
        count = int(limits.number(n, "how many", 1, limits.SENTENCES))
        options: dict[str, Any] = {"method": limits.choice(method, "method", METHODS)}
        if method == "sample":
            options["temperature"] = limits.number(temperature, "temperature", 0.05, 5.0)
            options["top_p"] = limits.number(top_p, "nucleus (top-p)", 0.05, 1.0)
        with self.model_lock:
            return self.vae.sample(count, seed=int(limits.number(seed, "seed", 0, 2**31 - 1)), **options)

    def move(self, sentence: str, dimension: float, value: float) -> tuple[str, str, Rows]:
        """Returns the sentence given back, the same with one dimension at `value`, and over a range of values.

        Args:
            sentence: whose posterior mean (D,) is moved.
            dimension: 0 to D - 1.
            value: in latent units, the standard deviations of a prior N(0, I).
        """
        line = limits.text(sentence, "sentence")
        place = self._dimension(dimension)
        wanted = limits.number(value, "value", -10.0, 10.0)
        with self.model_lock:
            z = self.vae.encode([line]).repeat(2 + len(PLACES), 1)
            z[1:, place] = torch.tensor([wanted, *PLACES])
            before, after, *others = self.vae.decode(z, method="greedy")
        return before, after, [(f"{at:+g}", text) for at, text in zip(PLACES, others)]

    def own(self, sentence: str, dimension: float) -> float:
        """Returns the value of one dimension of a sentence's posterior mean, to two places.

        Args:
            sentence: whose.
            dimension: 0 to D - 1.
        """
        line, place = limits.text(sentence, "sentence"), self._dimension(dimension)
        with self.model_lock:
            return round(float(self.vae.encode([line])[0, place]), 2)

    def busiest(self) -> int:
        """Returns the dimension of the largest KL; of the largest variance where there is no KL, 0 without texts."""
        if len(self.texts) < 2:
            return 0
        kl, variance = self.activity
        return int((variance if kl is None else kl).argmax())

    def _dimension(self, dimension: float) -> int:
        return int(limits.number(dimension, "dimension", 0, self.vae.latent_dim - 1))

    def attribute(self, sentence: str, name: str, source: str, target: str, strength: float) -> tuple[str, Rows]:
        """Returns the sentence moved from one label towards another, and the same at several strengths.

        Args:
            sentence: whose posterior mean is moved.
            name: of the attribute.
            source: the label that the way leads from.
            target: the label that it leads to.
            strength: in differences of the labels' mean latents (`toolbox.attribute_vector`).
        """
        line = limits.text(sentence, "sentence")
        factor = limits.number(strength, "strength", -5.0, 5.0)
        with self.model_lock:
            vector = self._vector(name, source, target).vector
            z = self.vae.encode([line]) + torch.tensor([factor, *STRENGTHS])[:, None] * vector
            moved, *others = self.vae.decode(z, method="greedy")
        return moved, [(f"{at:+g}", text) for at, text in zip(STRENGTHS, others)]

    def _vector(self, name: str, source: str, target: str) -> AttributeVector:
        known = set(self.labels[limits.choice(name, "attribute", self.labels)]) - {""}
        for field, label in (("from", source), ("to", target)):
            limits.choice(label, field, known)
        if source == target:
            raise UserError(f"from and to: both are {source!r}; take two labels")
        key = (name, source, target)
        if key not in self.vectors:
            kept = [(text, label) for text, label in zip(self.texts, self.labels[name]) if label]
            texts, labels = [text for text, _ in kept], [label for _, label in kept]
            self.vectors[key] = attribute_vector(self.vae, texts, labels, target=target, source=source)
        return self.vectors[key]

    def plane(self, kind: str = "PCA") -> Plane:
        """Returns the map of the corpus, made once from the posterior means (N, D).

        Args:
            kind: PCA, or UMAP (McInnes 2018, arXiv 1802.03426).

        Raises:
            UserError: fewer than 3 sentences.
            MissingExtraError: UMAP without umap-learn.
        """
        limits.choice(kind, "map", MAPS)
        if len(self.texts) < 3:
            raise UserError("map: needs 3 sentences or more (--corpus)")
        # Not the model's lock: the first UMAP of thousands takes seconds, and others may ask the model meanwhile.
        with self.map_lock:
            if kind not in self.planes:
                self.planes[kind] = {"PCA": _pca, "UMAP": _umap}[kind](self.means)
            return self.planes[kind]

    def at(self, kind: str, x: float, y: float) -> Clicked:
        """Returns what lies at a place of the map.

        On PCA the place's own latent is decoded, mean + (x, y) axes; on UMAP, which has no way back, that of the
        nearest sentence.

        Args:
            kind: PCA or UMAP.
            x: across, in the map's units.
            y: up.
        """
        plane = self.plane(kind)
        place = torch.tensor([x, y], dtype=torch.float32)
        with self.model_lock:
            if plane.axes is not None:
                z = plane.mean + place @ plane.axes
            else:
                z = self.means[(plane.points - place).norm(dim=1).argmin()]
            distances = (self.means - z).norm(dim=1)
            nearest = distances.argsort()[:NEIGHBOURS].tolist()
            (text,) = self.vae.decode(z[None], method="greedy")
        return Clicked(text, [(float(distances[row]), self.texts[row]) for row in nearest])

    @functools.cached_property
    def activity(self) -> tuple[Tensor | None, Tensor]:
        """Each dimension's KL to the prior, nats a sentence, and the variance of its posterior mean, (D,) each.

        The KL is of diagonal Gaussians under a prior of independent dimensions; None for anything else.
        """
        if len(self.texts) < 2:
            raise UserError("latents: needs 2 sentences or more (--corpus)")
        store = ListStore(self.vae.ids(self.texts))
        with self.model_lock, torch.inference_mode():
            posteriors = [
                self.vae.model.encode(self.vae.on_device(batch))
                for _, batch in evaluation_batches(store, self.vae.tokenizer.pad_id)
            ]
            prior = self.vae.model.prior
            kl = kl_by_dimension(posteriors, prior()) if prior is not None else None
        return (None if kl is None else kl.float()), self.means.var(0)

    def reconstruct(self, sentence: str) -> str:
        """Returns the sentence given back from its posterior mean."""
        with self.model_lock:
            return self.vae.reconstruct([limits.text(sentence, "sentence")])[0]


def _pca(z: Tensor) -> Plane:
    mean = z.mean(0)
    _, _, axes = torch.linalg.svd(z - mean, full_matrices=False)
    if len(axes) < 2:
        axes = torch.cat([axes, torch.zeros_like(axes)])
    axes = axes[:2]
    # A sign for each axis, so that the same latents give the same picture.
    axes = axes * torch.where(axes.gather(1, axes.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    return Plane("PCA", (z - mean) @ axes.T, mean, axes)


def _umap(z: Tensor) -> Plane:
    try:
        import umap
    except ImportError as error:
        raise MissingExtraError("umap-learn", "explorer", "for a UMAP map") from error
    found = umap.UMAP(n_neighbors=min(15, len(z) - 1), random_state=0, n_jobs=1, init="random").fit_transform(z.numpy())
    return Plane("UMAP", torch.as_tensor(found, dtype=torch.float32), z.mean(0), None)


def grammar_labels(texts: Sequence[str]) -> dict[str, list[str]]:
    """Returns the attributes that the built-in grammar knows of its own sentences; "" where it cannot make one."""
    from textvae.text import grammar

    rows: list[dict[str, str]] = []
    for text in texts:
        try:
            rows.append({name: str(value) for name, value in grammar.attributes(text).items()})
        except UserError:
            rows.append({})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "") for row in rows] for name in names}


def spread(values: Sequence[Any], at_most: int) -> list[Any]:
    """Returns `at_most` of the values, evenly from first to last: a file may be sorted by label."""
    count = min(at_most, len(values))
    return [values[place * len(values) // count] for place in range(count)]
