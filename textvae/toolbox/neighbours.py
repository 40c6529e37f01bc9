"""Nearest sentences of an encoded corpus: exact, or by faiss or hnswlib (the extras `neighbours` and `hnswlib`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from textvae.errors import MissingExtraError, UserError, suggest
from textvae.generation import given

if TYPE_CHECKING:
    from textvae.api import TextVAE

BACKENDS = ("exact", "faiss", "hnswlib")
METRICS = ("euclidean", "cosine")
PAIRS_AT_ONCE = 2**22  # distances held at a time: 16 MB
LINKS = 32  # of a row in the graph of an index
BREADTH = 200  # candidates held while the graph is built and searched; more finds more, and takes longer


class Found(NamedTuple):
    """The nearest rows of a corpus, nearest first."""

    distances: Tensor  # (M, k) float32: latent units, or 1 - cosine
    rows: Tensor  # (M, k) int64


class Neighbours:
    """The latents of a corpus, to be searched as often as one likes.

    exact compares with all of them, chunk by chunk, and holds nothing beside them. faiss and hnswlib build a graph of
    near rows (HNSW) and walk it: they miss a few neighbours, and answer from a million rows in a millisecond. Rows that
    are equal stand in it once, for a walk cannot leave a crowd of them.

    Args:
        z: (N, D) latents; kept in float32.
        backend: exact, faiss or hnswlib.
        metric: euclidean or cosine.

    Raises:
        UserError: no row, latents that are not finite, an unknown backend or metric.
        MissingExtraError: a backend that is not installed.

    References:
        Malkov & Yashunin 2018, arXiv 1603.09320 (HNSW); Douze 2024, arXiv 2401.08281 (faiss).
    """

    def __init__(self, z: Tensor, *, backend: str = "exact", metric: str = "euclidean") -> None:
        for name, got, known in (("backend", backend, BACKENDS), ("metric", metric, METRICS)):
            if got not in known:
                raise UserError(f"{name}: got {got!r}{suggest(got, known)}")
        z = torch.as_tensor(z)
        if z.dim() != 2 or not len(z) or not z.isfinite().all():
            raise UserError(f"neighbours: got a corpus of shape {tuple(z.shape)}; (N, D), N above 0, finite, is needed")
        self.backend, self.metric = backend, metric
        self._z = self._prepared(z)
        if backend != "exact":
            self._different, groups, sizes = torch.unique(self._z, dim=0, return_inverse=True, return_counts=True)
            self._equal = groups.argsort(stable=True).split(sizes.tolist())  # row of `different` -> rows that equal it
            self._index: Any = {"faiss": _faiss, "hnswlib": _hnswlib}[backend](self._different)

    def search(self, queries: Tensor, k: int) -> Found:
        """Returns the k nearest rows of each query (M, D), nearest first; all rows where there are fewer than k.

        Raises:
            UserError: k below 1, or queries of another width.
        """
        k = given.count(k, "k", 1)
        if queries.dim() != 2 or queries.shape[1] != self._z.shape[1]:
            raise UserError(f"queries: got shape {tuple(queries.shape)}; it must be (M, {self._z.shape[1]})")
        k, queries = min(k, len(self._z)), self._prepared(queries)
        if not len(queries):
            return Found(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))
        found = self._exact(queries, k) if self.backend == "exact" else self._by_index(queries, k)
        return Found(found.distances.square() / 2, found.rows) if self.metric == "cosine" else found

    def _prepared(self, z: Tensor) -> Tensor:
        z = z.detach().cpu().float()
        # Of unit vectors |a - b|^2 = 2 (1 - cos).
        return torch.nn.functional.normalize(z, dim=-1) if self.metric == "cosine" else z.contiguous()

    def _exact(self, queries: Tensor, k: int) -> Found:
        parts = [self._chunk(some, k) for some in queries.split(max(1, PAIRS_AT_ONCE // len(self._z)))]
        return Found(torch.cat([part.distances for part in parts]), torch.cat([part.rows for part in parts]))

    def _chunk(self, queries: Tensor, k: int) -> Found:
        """Merges the best of each chunk of rows, so that a large corpus needs no more memory than a chunk."""
        distances, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for begin in range(0, len(self._z), PAIRS_AT_ONCE):
            some = self._z[begin : begin + PAIRS_AT_ONCE]
            # Products of large latents lose the small distances.
            near = torch.cdist(queries, some, compute_mode="donot_use_mm_for_euclid_dist").topk(
                min(k, len(some)), largest=False
            )
            distances, order = torch.cat([distances, near.values], 1).sort(dim=1, stable=True)
            rows = torch.cat([rows, near.indices + begin], 1).gather(1, order)[:, :k]
            distances = distances[:, :k]
        return Found(distances, rows)

    def _by_index(self, queries: Tensor, k: int) -> Found:
        most = min(k, len(self._different))
        try:
            if self.backend == "faiss":
                self._index.hnsw.efSearch = max(BREADTH, 2 * k)
                squares, found = self._index.search(queries.numpy(), most)
            else:
                self._index.set_ef(max(BREADTH, 2 * k))
                found, squares = self._index.knn_query(queries.numpy(), k=most, num_threads=1)
        except RuntimeError:  # hnswlib's, where its walk meets fewer rows than are asked for
            return self._exact(queries, k)
        found = torch.from_numpy(np.asarray(found).astype(np.int64))
        distances = torch.from_numpy(np.asarray(squares, dtype=np.float32)).clamp_min(0).sqrt()
        parts = [self._all(*both, k) for both in zip(distances, found)]
        short = [place for place, part in enumerate(parts) if len(part.rows) < k]  # so does faiss's, and says -1
        if short:
            exact = self._exact(queries[short], k)
            for place, *part in zip(short, exact.distances, exact.rows):
                parts[place] = Found(*part)
        return Found(torch.stack([part.distances for part in parts]), torch.stack([part.rows for part in parts]))

    def _all(self, distances: Tensor, found: Tensor, k: int) -> Found:
        """The first k rows, or fewer, of the different ones that were found and of those that equal them."""
        rows: list[Tensor] = []
        sizes: list[int] = []
        for row in found[found >= 0].tolist():
            rows.append(self._equal[row])
            sizes.append(len(rows[-1]))
            if sum(sizes) >= k:
                break
        together = torch.cat(rows)[:k] if rows else torch.empty(0, dtype=torch.int64)
        return Found(distances[: len(sizes)].repeat_interleave(torch.tensor(sizes, dtype=torch.int64))[:k], together)


def nearest(
    vae: TextVAE,
    queries: Sequence[str],
    corpus: Sequence[str],
    k: int = 5,
    *,
    backend: str = "exact",
    metric: str = "euclidean",
) -> list[list[tuple[int, float]]]:
    """Returns for each query the rows and distances of the k nearest sentences of a corpus, by posterior means.

    Args:
        vae: a run.
        queries: M sentences; one that stands in the corpus finds itself first, at distance 0.
        corpus: N sentences. To ask more than once, keep a `Neighbours` of their latents.
        k: how many.
        backend: exact, faiss or hnswlib.
        metric: euclidean (latent units) or cosine (1 - cos, 0 to 2).

    Raises:
        UserError: as `Neighbours` and its search.
        MissingExtraError: a backend that is not installed.
    """
    corpus, queries, k = given.texts(corpus, "corpus"), given.texts(queries, "queries"), given.count(k, "k", 1)
    index = Neighbours(vae.encode(corpus), backend=backend, metric=metric)
    found = index.search(vae.encode(queries), k)
    return [list(zip(rows, distances)) for rows, distances in zip(found.rows.tolist(), found.distances.tolist())]


def _faiss(z: Tensor) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "neighbours", "for neighbours by the backend faiss") from error
    index = faiss.IndexHNSWFlat(z.shape[1], LINKS)
    index.hnsw.efConstruction = BREADTH
    index.add(z.numpy())
    return index


def _hnswlib(z: Tensor) -> Any:
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtraError("hnswlib", "hnswlib", "for neighbours by the backend hnswlib") from error
    index = hnswlib.Index(space="l2", dim=z.shape[1])
    index.init_index(max_elements=len(z), M=LINKS, ef_construction=BREADTH, random_seed=0)
    # One thread: the graph depends on the order in which rows enter it.
    index.add_items(z.numpy(), num_threads=1)
    return index
