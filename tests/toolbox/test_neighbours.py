"""Neighbours against scipy's tree, and an index's recall against the exact ones."""

import importlib

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from textvae.errors import MissingExtraError, UserError
from textvae.toolbox import neighbours
from textvae.toolbox.neighbours import Neighbours, nearest


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pairs", [2**22, 128])  # at 128 both the queries and the rows come in chunks
def test_exact_neighbours_are_those_of_scipys_tree(monkeypatch, pairs):
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", pairs)
    z, queries = normal(700, 5), normal(40, 5, seed=1)
    found = Neighbours(z).search(queries, 7)
    distances, rows = cKDTree(z.numpy()).query(queries.numpy(), k=7)
    np.testing.assert_array_equal(found.rows.numpy(), rows)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-5)


def test_cosine_neighbours_do_not_see_the_length():
    z, queries = normal(200, 5), normal(9, 5, seed=1)
    found = Neighbours(z * torch.linspace(0.1, 9, 200)[:, None], metric="cosine").search(queries, 4)
    cosine = torch.cosine_similarity(queries[:, None], z[None], dim=-1)
    expected = (1 - cosine).topk(4, largest=False)
    assert torch.equal(found.rows, expected.indices)
    torch.testing.assert_close(found.distances, expected.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["faiss", "hnswlib"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_an_index_finds_nearly_all_that_are_near(backend, metric):
    pytest.importorskip(backend)
    z, queries = normal(3000, 16), normal(100, 16, seed=1)
    exact = Neighbours(z, metric=metric).search(queries, 10)
    found = Neighbours(z, backend=backend, metric=metric).search(queries, 10)
    recall = (found.rows[:, :, None] == exact.rows[:, None]).any(-1).float().mean()
    assert float(recall) > 0.97
    same = (found.rows == exact.rows).all(-1)
    torch.testing.assert_close(found.distances[same], exact.distances[same], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("backend", "extra"), [("faiss", "neighbours"), ("hnswlib", "hnswlib")])
def test_a_missing_library_says_how_to_get_it(monkeypatch, backend, extra):
    monkeypatch.setitem(importlib.import_module("sys").modules, backend, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'textvae\[{extra}\]'"):
        Neighbours(normal(5, 2), backend=backend)


def test_a_sentence_finds_itself_first_and_near_ones_share_its_words(vae, corpus):
    texts = list(dict.fromkeys(corpus[:400]))
    found = nearest(vae, texts[:20], texts, 3)
    assert [rows[0][0] for rows in found] == list(range(20))
    assert all(rows[0][1] < 1e-3 for rows in found)
    assert all(rows[1][1] <= rows[2][1] for rows in found)

    def shared_words(a, b):
        return len(set(a.split()) & set(b.split()))

    near = sum(shared_words(texts[i], texts[rows[1][0]]) for i, rows in enumerate(found))
    far = sum(shared_words(texts[i], texts[i + 100]) for i in range(20))
    assert near > 1.4 * far


def test_few_rows_and_no_query():
    index = Neighbours(normal(3, 2))
    assert index.search(normal(4, 2), 10).rows.shape == (4, 3)
    assert index.search(normal(0, 2), 2).rows.shape == (0, 2)


def test_what_cannot_be_is_refused():
    z = normal(4, 2)
    for call, message in (
        (lambda: Neighbours(z, backend="fais"), "Did you mean 'faiss'"),
        (lambda: Neighbours(z, metric="cos"), "Did you mean 'cosine'"),
        (lambda: Neighbours(z[:0]), "N above 0"),
        (lambda: Neighbours(z / 0), "finite"),
        (lambda: Neighbours(z).search(z, 0), "k: got 0"),
        (lambda: Neighbours(z).search(normal(4, 3), 1), r"must be \(M, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("backend", ["faiss", "hnswlib"])
def test_an_index_finds_its_way_among_rows_that_are_equal(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    crowd = normal(10, 8, seed=2).repeat_interleave(300, 0)
    z, queries = torch.cat([normal(3_000, 8), crowd]), normal(100, 8, seed=1)
    found, exact = Neighbours(z, backend=backend).search(queries, 5), Neighbours(z).search(queries, 5)
    right = (found.distances - exact.distances).abs() < 1e-4
    assert float(right.float().mean()) > 0.97
    # More than there are different rows, and every row is one.
    alone = Neighbours(torch.cat([torch.zeros(999, 8), torch.ones(1, 8)]), backend=backend).search(
        torch.zeros(2, 8), 1000
    )
    assert alone.rows.sort(dim=1).values.tolist() == [list(range(1000))] * 2
    assert alone.rows[:, -1].tolist() == [999, 999]
