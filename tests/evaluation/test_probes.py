"""Probes against scikit-learn and closed forms, correlations against scipy; a run in a scikit-learn pipeline."""

from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import sentences

from textvae.errors import CheckpointError, UserError
from textvae.evaluation import probes
from textvae.evaluation.correlation import pearson, spearman


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(count: int, *, apart: float = 1.0, classes: int = 3, dimensions: int = 5, seed: int = 0):
    """Unit Gaussians about random centres, and which one each row is of."""
    source = generator(seed)
    centres = apart * torch.randn(classes, dimensions, generator=generator(99))
    labels = torch.randint(classes, (count,), generator=source)
    return centres[labels] + torch.randn(count, dimensions, generator=source), labels


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 3.0])
def test_the_linear_probe_predicts_what_scikit_learns_logistic_regression_does(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed (extra sklearn)")
    (x, y), (test_x, test_y) = clouds(300), clouds(500, seed=1)
    found = probes.linear_probe(x, y, test_x, test_y, penalties=[penalty])
    standard = [((part - x.mean(0)) / x.std(0, correction=0)).numpy() for part in (x, test_x)]
    # Its objective is C times the sum of losses plus |W|^2 / 2.
    model = linear_model.LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=1000)
    assert found.accuracy == pytest.approx(model.fit(standard[0], y).score(standard[1], test_y), abs=1e-9)
    assert 0.4 < found.accuracy < 0.999
    assert found.chosen == penalty


def test_the_linear_probe_reaches_the_bayes_rate_of_two_gaussians():
    # Unit variance, means at -1 and 1: the best classifier errs with probability Phi(-1).
    y = torch.arange(6000) % 2
    z = torch.randn(6000, 1, generator=generator()) + (2.0 * y - 1)[:, None]
    found = probes.linear_probe(z[:2000], y[:2000], z[2000:], y[2000:], generator=generator())
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert found.accuracy == pytest.approx(best, abs=3 * math.sqrt(best * (1 - best) / 4000))
    assert found.majority == pytest.approx(0.5)
    assert found.labels == 2000


def test_the_penalty_that_generalises_is_chosen():
    # 40 sentences in 200 dimensions of which one speaks.
    y = torch.arange(1040) % 2
    z = torch.randn(1040, 200, generator=generator())
    z[:, 0] += 4.0 * y - 2
    chosen = probes.linear_probe(z[:40], y[:40], z[40:], y[40:], penalties=(1e-6, 1.0), generator=generator())
    fixed = [probes.linear_probe(z[:40], y[:40], z[40:], y[40:], penalties=(p,)).accuracy for p in (1e-6, 1.0)]
    assert chosen.chosen == 1.0
    assert chosen.accuracy == fixed[1] >= fixed[0]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_neighbours_vote_as_scikit_learns_do_where_no_votes_are_equal(k):
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed (extra sklearn)")
    (x, y), (test_x, test_y) = clouds(300), clouds(300, seed=1)
    model = neighbors.KNeighborsClassifier(k).fit(x, y)
    votes = np.sort(model.predict_proba(test_x), 1)
    clear = torch.from_numpy(votes[:, -1] > votes[:, -2] + 1e-9)
    found = probes.knn_probe(x, y, test_x[clear], test_y[clear], neighbours=[k])
    assert found.accuracy == pytest.approx(model.score(test_x[clear], test_y[clear]))
    assert clear.sum() > 200


def test_equal_votes_go_to_the_nearest():
    z, labels = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), ["b", "a", "a", "b"]
    assert probes.knn_probe(z, labels, torch.tensor([[0.2], [2.9]]), ["b", "a"], neighbours=[4]).accuracy == 1


def test_a_probe_is_the_same_in_inference_mode():
    z, y = clouds(60)
    outside = probes.linear_probe(z, y, z, y, generator=generator())
    with torch.inference_mode():
        inside_z = z.double()
        assert probes.linear_probe(inside_z, y, inside_z, y, generator=generator()) == outside


def test_more_labels_help_and_rows_are_as_asked():
    (x, y), (test_x, test_y) = clouds(600, apart=0.8), clouds(1000, apart=0.8, seed=1)
    rows = probes.probes(x, y, test_x, test_y, per_label=(2, 30, None), repeats=4, generator=generator())
    assert [row["labels"] for row in rows] == [6, 90, 600]
    for name in ("linear", "knn"):
        assert rows[0][name] < rows[1][name] < rows[2][name] + 0.02
        assert rows[0][f"{name}_spread"] > 0
        assert rows[2][f"{name}_spread"] is None
    again = probes.probes(x, y, test_x, test_y, per_label=(2, 30, None), repeats=4, generator=generator())
    assert rows == again


def test_few_takes_so_many_of_each_label_and_all_of_a_rare_one():
    labels = ["x"] * 50 + ["y"] * 3 + ["z"] * 20
    rows = probes.few(labels, 5, generator=generator())
    assert [sum(labels[row] == label for row in rows.tolist()) for label in "xyz"] == [5, 3, 5]
    assert len(set(rows.tolist())) == 13
    assert rows.tolist() != probes.few(labels, 5, generator=generator(1)).tolist()


def test_latents_that_say_nothing_give_the_majority_and_an_unseen_label_counts_as_an_error():
    z, y = torch.ones(100, 3), [0] * 70 + [1] * 30
    found = probes.linear_probe(z, y, z, y, generator=generator())
    assert found.accuracy == found.majority == pytest.approx(0.7)
    seen = probes.knn_probe(torch.eye(2), ["a", "b"], torch.eye(2), ["a", "never"], neighbours=[1])
    assert seen.accuracy == pytest.approx(0.5)


def test_correlations_are_scipys_with_equal_numbers_too():
    draw = random.Random(0)
    a = [draw.randrange(6) for _ in range(80)]
    b = [x + draw.gauss(0, 2) for x in a]
    assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert pearson([1e-300, 2e-300, 3e-300], [3, 2, 1]) == pytest.approx(-1)


def test_similarity_is_the_correlation_of_cosines():
    angles = torch.linspace(0, 3.0, 20)
    first = torch.tensor([[2.0, 0.0]]).repeat(20, 1)
    second = 5 * torch.stack([angles.cos(), angles.sin()], -1)
    assert probes.similarity(first, second, angles.cos()).pearson == pytest.approx(1)
    # Any monotone scale has the same ranks.
    assert probes.similarity(first, second, -angles.exp()).spearman == pytest.approx(1)


Z, Y = torch.randn(10, 2, generator=generator()), [0, 1] * 5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: probes.linear_probe(Z, Y[:9], Z, Y), r"training part: got latents \(10, 2\) and 9 labels"),
        (lambda: probes.linear_probe(Z, Y, Z[:0], []), "test part"),
        (lambda: probes.linear_probe(Z * math.nan, Y, Z, Y), "not finite"),
        (lambda: probes.knn_probe(Z, Y, Z[:, :1], Y), "2 dimensions, test latents 1"),
        (lambda: probes.knn_probe(Z, [1] * 10, Z, Y), r"2 labels or more; the training part has \[1\]"),
        (lambda: probes.linear_probe(Z, Y, Z, Y, penalties=[0.0]), r"penalties: got \[0.0\]"),
        (lambda: probes.knn_probe(Z, Y, Z, Y, neighbours=[]), r"neighbours: got \[\]"),
        (lambda: probes.knn_probe(Z, Y, Z, Y, held_out=1.0), "held_out: got 1.0"),
        (lambda: probes.few([], 1), "0 labels"),
        (lambda: probes.probes(Z, Y, Z, Y, repeats=0), "0 repeats"),
        (lambda: probes.similarity(Z, Z[:5], [1] * 5), "similarity: got latents"),
        (lambda: probes.similarity(Z, Z, range(10)), "first row is 1 throughout"),
        (lambda: pearson([1, math.inf], [1, 2]), "finite"),
        (lambda: spearman([1, 2], [1, 2, 3]), "got shapes"),
    ],
)
def test_what_has_no_figure_is_refused(call, match):
    with pytest.raises(UserError, match=match):
        call()


def test_a_run_stands_in_a_pipeline_is_cloned_and_pickled_by_its_path(values, tmp_path):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed (extra sklearn)")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    import textvae
    from textvae.recipe import Recipe
    from textvae.sklearn import LatentTransformer
    from textvae.training import train

    values["training"] |= {"max_steps": 2, "evaluate_every": 2}
    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    texts = sentences(30, seed=5)
    expected = textvae.load(tmp_path / "run").encode(texts).numpy()
    transformer = LatentTransformer(tmp_path / "run")
    for other in (transformer, base.clone(transformer), pickle.loads(pickle.dumps(transformer.fit(texts)))):
        np.testing.assert_array_equal(other.transform(np.asarray(texts)), expected)
    assert len(pickle.dumps(transformer)) < 2_000
    assert transformer.get_params() == {"run": tmp_path / "run", "device": "cpu", "trust_code": False}
    assert list(transformer.get_feature_names_out()) == ["z0", "z1", "z2", "z3"]
    pipeline = make_pipeline(transformer, LogisticRegression())
    assert pipeline.fit(texts, ["here" in text for text in texts]).predict(texts).shape == (30,)
    for wrong in ("one text", [1, 2]):
        with pytest.raises(UserError, match="list of texts"):
            transformer.transform(wrong)
    table = np.asarray(texts)[:, None]
    with pytest.raises(UserError, match="2 dimensions; it must be a list of texts, or one column"):
        transformer.transform(table)
    with pytest.raises(CheckpointError, match="holds no run"):
        transformer.set_params(run=tmp_path / "other").transform(texts)
