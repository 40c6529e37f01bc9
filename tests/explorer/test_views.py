"""What the explorer answers is what the run itself says."""

import numpy as np
import pytest
import torch
from conftest import ROOT, sentences
from torch.distributions import Normal, kl_divergence

import textvae
from textvae.errors import UserError
from textvae.explorer import limits, pictures
from textvae.explorer.views import KINDS, Views, spread
from textvae.recipe import Recipe
from textvae.training import train

A, B = "the cook liked the soup .", "the dog runs ."
BLNS = ROOT.parent / "shared" / "data" / "blns"


@pytest.mark.parametrize("kind", ["linear", "spherical", "data"])
def test_a_walk_begins_and_ends_with_the_sentences_given_back(views, vae, kind):
    rows = views.walk(A, B, kind, 9)
    assert [float(place) for place, _ in rows] == pytest.approx([i / 8 for i in range(9)], abs=0.006)
    assert [rows[0][1], rows[-1][1]] == vae.reconstruct([A, B])


def test_samples_are_the_runs_own_of_that_seed(views, vae):
    found = views.sample(6, 0.7, 0.9, "sample", 3)
    assert found == vae.sample(6, seed=3, method="sample", temperature=0.7, top_p=0.9)
    assert found != views.sample(6, 0.7, 0.9, "sample", 4)


def test_a_moved_dimension_is_moved_alone(views, vae):
    before, after, rows = views.move(A, 2, 1.5)
    z = vae.encode([A])
    assert before == vae.decode(z, method="greedy")[0]
    z[0, 2] = 1.5
    assert after == vae.decode(z, method="greedy")[0]
    assert [place for place, _ in rows] == ["-3", "-2", "-1", "+0", "+1", "+2", "+3"]


def test_an_attribute_is_the_difference_of_the_labels_means(views, vae, texts):
    labels = views.labels["tense"]
    past, present = (
        vae.encode([text for text, label in zip(texts, labels) if label == wanted]).mean(0)
        for wanted in ("past", "present")
    )
    moved, rows = views.attribute(A, "tense", "past", "present", 1.5)
    assert moved == vae.decode(vae.encode([A]) + 1.5 * (present - past), method="greedy")[0]
    assert dict(rows)["+0"] == vae.reconstruct([A])[0]


def test_a_place_of_the_pca_map_is_decoded_from_its_own_latent(views, vae):
    plane = views.plane("PCA")
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5, rtol=0)
    # numpy's eigenvectors of the covariance span the same plane: the variances along it are its largest two.
    largest = torch.linalg.eigvalsh(torch.cov(views.means.T))[-2:].flip(0)
    torch.testing.assert_close(plane.points.var(0), largest, rtol=1e-3, atol=1e-6)
    answer = views.at("PCA", 0.5, -0.25)
    z = views.means.mean(0) + torch.tensor([0.5, -0.25]) @ plane.axes
    assert answer.decoded == vae.decode(z[None], method="greedy")[0]
    distances = (views.means - z).norm(dim=1).sort()
    assert [row[0] for row in answer.neighbours] == pytest.approx(distances.values[:5].tolist(), abs=1e-5)
    assert answer.neighbours[0][1] == views.texts[int(distances.indices[0])]


def test_a_place_of_the_umap_map_is_its_nearest_sentence(vae, texts):
    pytest.importorskip("umap")
    few = Views(vae, texts[:40])
    plane = few.plane("UMAP")
    x, y = plane.points[7].tolist()
    answer = few.at("UMAP", x, y)
    assert answer.neighbours[0] == (pytest.approx(0.0, abs=1e-5), texts[7])
    assert answer.decoded == vae.reconstruct([texts[7]])[0]


def test_the_pixels_of_a_mark_lead_back_to_its_place_and_a_mark_moves_nothing(views):
    points = views.plane("PCA").points
    far = (float(points[:, 0].max()), float(points[:, 1].min()))
    bare = pictures.chart(points, views.labels["tense"], "a map")
    for mark in ((0.0, 0.0), far, (100.0, 100.0)):
        marked = pictures.chart(points, views.labels["tense"], "a map", mark)
        assert (marked.limits, marked.to_data.tolist()) == (bare.limits, bare.to_data.tolist())
        rows, columns = np.nonzero((marked.image != bare.image).any(-1))
        if mark == (100.0, 100.0):
            assert not len(rows)
            continue
        x, y = bare.place((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
        pixel = (bare.limits[1] - bare.limits[0]) / 600
        assert (x, y) == (pytest.approx(mark[0], abs=2 * pixel), pytest.approx(mark[1], abs=2 * pixel))
    with pytest.raises(UserError, match="within the axes"):
        bare.place(2, 2)


def test_the_kl_of_each_dimension_is_the_closed_form_s_mean(views, vae):
    kl, variance = views.activity
    means, scales = vae.encode_distribution(views.texts)
    expected = kl_divergence(Normal(means.double(), scales.double()), Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, means.var(0))
    assert views.busiest() == int(expected.argmax())
    assert Views(vae).busiest() == 0


def test_the_kl_of_each_dimension_is_of_sentences_as_the_run_reads_them(vae, texts, monkeypatch):
    data = vae.recipe.data.model_copy(update={"lowercase": True})
    monkeypatch.setattr(vae, "recipe", vae.recipe.model_copy(update={"data": data}))
    plain, upper = (Views(vae, some).activity[0] for some in (texts[:20], [text.upper() for text in texts[:20]]))
    torch.testing.assert_close(plain.sum(), upper.sum())


@pytest.mark.parametrize(
    "posterior", [{"kind": "point"}, {"kind": "von_mises_fisher", "kappa": 20.0}], ids=lambda options: options["kind"]
)
def test_a_posterior_without_a_kl_by_dimension_has_none_shown_and_answers_everything_else(values, tmp_path, posterior):
    values["model"]["posterior"] = posterior
    values["objective"] = {"mmd": {"kind": "mmd", "weight": 1.0}}
    if posterior["kind"] == "von_mises_fisher":
        values["model"]["prior"] = {"kind": "uniform_sphere"}
        values["objective"] = {"kl": {"kind": "kl", "weight": 1.0}}
    values["training"] |= {"max_steps": 2}
    vae = textvae.load(train(Recipe.model_validate(values), tmp_path / "run", quiet=True))
    lines = sentences(30)
    few = Views(vae, lines, {"noun": [line.split()[1] for line in lines]})
    kl, variance = few.activity
    assert kl is None
    assert variance.shape == (4,)
    assert few.busiest() == int(vae.encode(lines).var(0).argmax())
    labels = sorted(set(few.labels["noun"]))
    for kind in KINDS:
        assert len(few.walk(lines[0], lines[1], kind, 3)) == 3
    assert isinstance(few.move(lines[0], 1, 0.5)[1], str)
    assert isinstance(few.attribute(lines[0], "noun", labels[0], labels[1], 1.0)[0], str)
    assert isinstance(few.at("PCA", 0.0, 0.0).decoded, str)
    assert len(few.sample(2)) == 2


def test_an_attribute_of_one_label_is_left_out_and_a_sorted_file_keeps_all_its_labels(vae, texts):
    few = Views(vae, texts[:4], {"one": ["a"] * 4, "none": [""] * 4, "two": ["a", "", "b", "b"]})
    assert list(few.labels) == ["two"]
    assert set(spread(["a"] * 5000 + ["b"] * 10, 2000)) == {"a", "b"}
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


def test_every_line_of_naughty_strings_gets_a_text_or_a_clear_error(views):
    path = BLNS / "blns.txt"
    if not path.is_file():
        pytest.skip("the Big List of Naughty Strings is not beside the repository")
    lines = path.read_text(encoding="utf-8").split("\n")
    given_back = 0
    for number, line in enumerate(lines):
        cleaned = " ".join(line.split())
        if not cleaned or len(cleaned) > limits.CHARACTERS:
            with pytest.raises(UserError, match="sentence: "):
                views.reconstruct(line)
            continue
        assert isinstance(views.reconstruct(line), str)
        given_back += 1
        if number % 40 == 0:
            assert views.walk(cleaned, A, "linear", 3)[0][1] == views.move(line, 0, 1.0)[0]
            assert isinstance(views.attribute(line, "tense", "past", "present", 1.0)[0], str)
    assert given_back > 400


@pytest.mark.parametrize(
    ("question", "names"),
    [
        (lambda v: v.walk("", A), "first sentence: is empty"),
        (lambda v: v.walk(A, "x" * 501), "last sentence: has 501 characters; 500 at most"),
        (lambda v: v.walk(A, B, "round"), "path: got 'round'"),
        (lambda v: v.walk(A, B, "linear", 10**6), "steps"),
        (lambda v: v.sample(10**9), "how many"),
        (lambda v: v.sample(1, float("nan")), "temperature"),
        (lambda v: v.sample(None), "how many: got None; a number from 1 to 50 is needed"),
        (lambda v: v.sample(1, seed=None), "seed: got None"),
        (lambda v: v.move(A, 99, 0.0), "dimension"),
        (lambda v: v.move(A, None, 0.0), "dimension: got None"),
        (lambda v: v.own(A, -1), "dimension: got -1; it must be from 0"),
        (lambda v: v.move({"a": 1}, 0, 0.0), "sentence: got {'a': 1}; a sentence is needed"),
        (lambda v: v.sample(1, method="magic"), "method: got 'magic'; known: beam, greedy, sample"),
        (lambda v: v.plane("TSNE"), "map: got 'TSNE'; known: PCA, UMAP"),
        (lambda v: Views(v.vae).plane(), "map: needs 3 sentences"),
        (lambda v: Views(v.vae).activity, "latents: needs 2 sentences"),
        (lambda v: v.attribute(A, "tens", "past", "present", 1.0), "Did you mean 'tense'"),
        (lambda v: v.attribute(A, "tense", "past", "past", 1.0), "both are 'past'"),
        (lambda v: v.attribute(A, "tense", "past", "", 1.0), "to: got ''; known: future, past, present"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(views, question, names):
    with pytest.raises(UserError) as caught:
        question(views)
    assert names in str(caught.value)


def test_a_client_that_asks_too_often_waits_and_others_do_not():
    rate = limits.Rate(answers=3, seconds=10.0)
    for now in (0.0, 1.0, 2.0):
        rate.take("one", now)
    with pytest.raises(UserError, match="more than 3 answers"):
        rate.take("one", 3.0)
    rate.take("two", 3.0)
    rate.take("one", 10.5)


def test_a_corpus_that_begins_with_a_text_too_long_or_blank_is_looked_at(vae, texts):
    from textvae.explorer.app import page

    for odd in ("the cook liked the soup . " * 30, "  "):
        blocks = page(Views(vae, [odd, *texts[:5], odd]))
        filled = {str(block["props"].get("value")) for block in blocks.get_config_file()["components"]}
        assert {texts[0], texts[4]} <= filled
        assert odd not in filled
