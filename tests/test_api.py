"""A trained run in the hand: rows stay in step, a seed repeats, a folder moves, figures agree with each other."""

import copy
import math
import shutil

import numpy
import pandas
import pytest
import torch
import yaml
from conftest import sentences

import textvae
from textvae.cli import main
from textvae.errors import CheckpointError, UserError
from textvae.evaluation.whole import spaced
from textvae.recipe import Recipe
from textvae.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    files = {}
    for seed, (part, count) in enumerate({"train": 400, "validation": 40, "test": 30}.items()):
        (folder / f"{part}.txt").write_text("\n".join(sentences(count, seed)) + "\n")
        files[part] = str(folder / f"{part}.txt")
    values = {
        "data": {"files": files},
        "model": {
            "latent_dim": 8,
            "embedding_dim": 16,
            "encoder": {"cell": "gru", "hidden_dim": 48},
            "decoder": {"cell": "gru", "hidden_dim": 48},
        },
        "objective": {"kl": {"kind": "kl", "weight": 0.05}},
        "training": {
            "batch_size": 16,
            "max_steps": 1000,
            "evaluate_every": 250,
            "optimizer": {"kind": "adamw", "lr": 0.01},
        },
        "evaluation": {"iw_samples": 50},
    }
    train(Recipe.model_validate(values), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def vae(run):
    return textvae.load(run)


def test_rows_stay_in_step_whatever_stands_beside_them(vae):
    texts = sentences(25, seed=9)
    means = vae.encode(texts)
    for i in (0, 7, 24):
        torch.testing.assert_close(vae.encode([texts[i]])[0], means[i], atol=1e-5, rtol=1e-5)
    order = list(reversed(range(25)))
    shuffled = [texts[i] for i in order]
    torch.testing.assert_close(vae.encode(shuffled), means[order], atol=1e-5, rtol=1e-5)
    together = vae.reconstruct(texts)
    assert vae.reconstruct(shuffled) == [together[i] for i in order]
    scores = vae.score(texts, seed=1)
    assert [s["tokens"] for s in scores] == [len(t.split()) + 1 for t in texts]


def test_a_trained_autoencoder_gives_most_sentences_back(vae):
    texts = sentences(60, seed=11)
    given_back = vae.reconstruct(texts)
    assert sum(a == b for a, b in zip(texts, given_back)) > 40


def test_a_seed_repeats_samples_and_another_does_not_and_the_global_state_is_left_alone(vae):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = vae.sample(20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.sample(20, seed=3) == first
    assert vae.sample(20, seed=4) != first
    assert vae.sample(0) == []


def test_numbers_of_numpy_and_tensors_are_numbers(vae):
    plain = vae.sample(5, seed=1, top_k=5, temperature=0.7)
    assert vae.sample(5, seed=1, top_k=numpy.int64(5), temperature=numpy.float32(0.7)) == plain
    assert vae.sample(5, seed=1, top_k=torch.tensor(5), temperature=torch.tensor(0.7)) == plain
    with pytest.raises(UserError, match=r"generation.top_k"):
        vae.sample(5, top_k=numpy.array([5, 6]))


def test_a_recipe_that_is_a_path_is_told_how_it_is_read(vae):
    with pytest.raises(UserError, match=r"recipe: got 'run/recipe.yaml'; textvae.load_recipe\(path\) reads one"):
        vae.evaluate(recipe="run/recipe.yaml")


def test_interpolation_starts_and_ends_at_the_reconstructions(vae):
    a, b = sentences(2, seed=21)
    for path in ("linear", "spherical"):
        walk = vae.interpolate(a, b, steps=5, path=path)
        assert len(walk) == 5
        assert [walk[0], walk[-1]] == vae.reconstruct([a, b])


def test_decoding_the_means_greedily_is_reconstruction(vae):
    texts = sentences(10, seed=5)
    assert vae.decode(vae.encode(texts), method="greedy") == vae.reconstruct(texts)


def test_importance_weighted_nll_is_below_the_elbo_on_average(vae):
    scores = vae.score(sentences(20, seed=2), iw_samples=100)
    assert sum(s["nll_iw"] for s in scores) < sum(s["nll_elbo"] for s in scores)
    for s in scores:
        assert s["nll_elbo"] == pytest.approx(s["reconstruction"] + s["kl"])


def test_evaluate_gives_every_figure_and_they_agree(vae):
    result = vae.evaluate("test")
    names = [
        "nll_elbo",
        "nll_iw",
        "ppl_elbo",
        "ppl_iw",
        "reconstruction",
        "kl",
        "mutual_information",
        "active_units",
        "bleu",
    ]
    assert set(names) <= set(result)
    assert result["nll_elbo"] == pytest.approx(result["reconstruction"] + result["kl"], rel=1e-6)
    assert result["nll_iw"] < result["nll_elbo"]
    assert result["bleu"] > 50
    tokens = sum(len(text.split()) + 1 for text in sentences(30, seed=2))
    assert result["target_tokens"] == tokens
    with pytest.raises(UserError, match=r"no part 'tset'.*Did you mean 'test'"):
        vae.evaluate("tset")


def test_a_run_folder_moves(run, vae, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    texts = sentences(3, seed=8)
    assert torch.equal(textvae.load(moved).encode(texts), vae.encode(texts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"generation\.temperature.*greater than 0"),
        ({"top_p": 1.5}, r"generation\.top_p"),
        ({"methd": "beam"}, r"methd.*Did you mean 'method'"),
        ({"beam_size": 50}, "beam_size: is of method beam, and the method is sample"),
        ({"method": "bean"}, r"generation\.method"),
        ({"method": "greedy", "top_k": 3}, r"top_k"),
    ],
)
def test_decoding_options_that_cannot_be_are_refused(vae, options, message):
    with pytest.raises(UserError, match=message):
        vae.sample(1, **options)


def test_what_is_no_text_no_latent_or_no_number_is_refused_where_it_is_given(vae):
    z = vae.encode(["the cat"])
    for call, message in (
        (lambda: vae.encode("the cat"), "texts: got the single text 'the cat'"),
        (lambda: vae.encode_distribution("the cat"), "texts: got the single text"),
        (lambda: vae.reconstruct("the cat"), "texts: got the single text"),
        (lambda: vae.score("the cat"), "texts: got the single text"),
        (lambda: vae.fit_prior("the cat"), "texts: got the single text"),
        (lambda: vae.encode([1]), "texts: item 0 is 1"),
        (lambda: vae.score(["the cat", None]), "texts: item 1 is None"),
        (lambda: vae.encode(None), "texts: got None"),
        (lambda: vae.decode(torch.zeros(2, 5)), r"\(N, 8\)"),
        (lambda: vae.decode(torch.zeros(8)), r"\(N, 8\)"),
        (lambda: vae.decode(z * math.nan), "z: row 0 holds nan"),
        (lambda: vae.decode(z * math.inf), "z: row 0 holds -?inf"),
        (lambda: vae.decode("the cat"), "z: got 'the cat'"),
        (lambda: vae.decode(z, seed="a"), "seed: got 'a'"),
        (lambda: vae.sample(2.5), "n: got 2.5; it must be a whole number"),
        (lambda: vae.sample(-1), "n: got -1"),
        (lambda: vae.sample(1, seed=2**70), "seed: got"),
        (lambda: vae.sample_latents(-1), "n: got -1"),
        (lambda: vae.score(["the cat"], iw_samples=0), "iw_samples: got 0; it must be 1 or more"),
        (lambda: vae.score([], iw_samples=-1), "iw_samples: got -1"),
        (lambda: vae.score(["the cat"], iw_samples=10**8), "iw_samples: got 100000000; it must be at most 1,000,000"),
        (lambda: vae.interpolate("the cat", ""), "b: is empty"),
        (lambda: vae.interpolate(" ", "the cat", path="data"), "a: is empty"),
        (lambda: vae.interpolate("the cat", "the dog", 1), "steps: got 1; it must be 2 or more"),
        (lambda: vae.interpolate("the cat", "the dog", 2.5), "steps: got 2.5"),
        (
            lambda: vae.interpolate("the cat", "the dog", path="round"),
            "path: got 'round'; known: data, linear, spherical",
        ),
        (lambda: vae.corpus_texts("train", -5), "sentences: got -5"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_text_may_hold_any_character_and_a_list_may_be_any_sequence(vae):
    assert torch.isfinite(vae.encode(["a\0b", "\n", "\u2028", "the \U0001f600"])).all()
    z = vae.encode(["the cat", "the dog"])
    assert torch.equal(vae.encode(("the cat", "the dog")), z)
    assert torch.equal(vae.encode(numpy.array(["the cat", "the dog"])), z)
    assert vae.decode(z.double().numpy(), method="greedy") == vae.reconstruct(["the cat", "the dog"])
    assert len(vae.score(["the cat"], iw_samples=numpy.int64(2))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "nope"}, "kind: got 'nope'.*known: flow, gaussian, mixture"),
        ({"kind": "mixture", "components": 0}, "components: got 0; a mixture has 1 or more"),
        ({"kind": "mixture", "components": 31}, "needs 31 sentences or more, and there are 30"),
    ],
)
def test_a_prior_that_cannot_be_fitted_is_refused_before_anything_is_encoded(vae, monkeypatch, options, message):
    monkeypatch.setattr(vae.model, "encode", None)
    with pytest.raises(UserError, match=message):
        vae.fit_prior(sentences(30), **options)


@pytest.mark.parametrize("temperature", [5e-324, 1e308])
def test_no_temperature_is_too_low_or_too_high(vae, temperature):
    assert len(vae.sample(20, seed=0, temperature=temperature)) == 20


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        textvae.load(tmp_path)


def test_a_score_is_of_the_sentences_own_draw(vae):
    texts = sentences(30, seed=8)
    found = vae.score(texts, seed=7)
    noise = torch.randn(1, 30, vae.latent_dim, generator=torch.Generator().manual_seed(7))[0]
    with torch.inference_mode():
        for row, (text, score) in enumerate(zip(texts, found)):
            ((_, batch),) = vae.batches([text])
            posterior = vae.model.encode(batch)
            z = posterior.mean + posterior.stddev * noise[row]
            nats = -float(vae.model.log_likelihood(batch, z[None]))
            assert score["reconstruction"] == pytest.approx(nats, abs=1e-4), row


def test_figures_of_sentences_stand_in_the_order_of_the_corpus(values, tmp_path):
    values["model"]["latent_dim"], values["objective"] = 0, {"kl": None}
    vae = of_posterior(values, tmp_path)
    texts = vae.corpus_texts("test", 30)
    saved = vae.evaluate("test", whole=True)["per_sentence"]
    assert saved["nll_elbo"] == pytest.approx([score["nll_elbo"] for score in vae.score(texts)], abs=1e-4)
    assert saved["tokens"] == [score["tokens"] for score in vae.score(texts)]


def test_labels_and_scores_must_be_as_many_as_their_texts(vae):
    texts = sentences(4, seed=1)
    with pytest.raises(UserError, match="probe: got 4 texts and 3 labels"):
        vae.evaluate("test", probe=((texts, list("aba")), (texts, list("abab"))))
    with pytest.raises(UserError, match="pairs: got 3 and 2 texts and 3 scores"):
        vae.evaluate("test", pairs=(texts[:3], texts[:2], [1.0, 2.0, 3.0]))


def test_a_table_is_no_list_of_texts(vae):
    for table in ({"text": ["a"]}, pandas.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, 0]})):
        with pytest.raises(UserError, match=r"name its column of texts, as table\['text'\]"):
            vae.encode(table)


def test_empty_and_unknown_words_encode_and_come_back_as_something(vae):
    texts = ["", "zebra zebra", "the cat"]
    assert torch.isfinite(vae.encode(texts)).all()
    assert len(vae.reconstruct(texts)) == 3
    assert all(s["nll_elbo"] > 0 for s in vae.score(texts))
    assert vae.encode([]).shape == (0, 8)
    assert vae.reconstruct([]) == []


def test_ban_unk_bans_it(vae):
    assert not any("<unk>" in text for text in vae.sample(50, seed=0, temperature=3.0, ban_unk=True))


def test_a_downloaded_recipe_may_not_import_code(run, tmp_path):
    hostile = tmp_path / "hostile"
    shutil.copytree(run, hostile)
    recipe = hostile / "recipe.yaml"
    assert "kind: gaussian" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("kind: gaussian", "kind: os.system"))
    with pytest.raises(UserError, match="trust_code"):
        textvae.load(hostile)


def test_a_run_that_could_not_be_trained_again_can_be_used(run, tmp_path, capsys):
    """What is refused of a new training may have been accepted by an earlier version."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    values = textvae.load_recipe(run / "recipe.yaml").resolved()
    values["objective"]["kl"]["weight"] = {"kind": "pid", "target": 3.0, "start": 0.0}
    (old / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["recipe", "check", str(old / "recipe.yaml")]) == 2
    assert "objective.kl.weight.start" in capsys.readouterr().err
    assert textvae.load(old).sample(3, seed=0) == textvae.load(run).sample(3, seed=0)


def test_a_users_own_class_stands_where_a_kind_does(run, tmp_path, monkeypatch):
    (tmp_path / "mymodule.py").write_text(
        "from textvae.latent.divergences import KL\n"
        "class Halved(KL):\n"
        "    def __init__(self, *, factor: float = 0.5) -> None:\n"
        "        super().__init__()\n"
        "        self.factor = factor\n"
        "    def __call__(self, posterior, prior, z):\n"
        "        return self.factor * super().__call__(posterior, prior, z)\n"
    )
    monkeypatch.chdir(tmp_path)
    values = copy.deepcopy(textvae.load_recipe(run / "recipe.yaml").resolved())
    values["objective"] = {"kl": {"kind": "mymodule.Halved", "factor": 0.25}}
    values["training"].update(max_steps=5, evaluate_every=5)
    own = train(Recipe.model_validate(values), tmp_path / "own", quiet=True)
    with pytest.raises(UserError, match="trust_code"):
        textvae.load(own)
    assert textvae.load(own, trust_code=True).sample(1, seed=0)


def of_posterior(values, tmp_path, **model):
    values["model"] |= model
    return textvae.load(train(Recipe.model_validate(values), tmp_path / "run", quiet=True))


def test_latents_on_a_sphere(values, tmp_path):
    """Scores are of the seed, units of the sphere's own variance, and no prior of the space around it is fitted."""
    posterior, prior = {"kind": "von_mises_fisher", "kappa": 40.0}, {"kind": "uniform_sphere"}
    vae = of_posterior(values, tmp_path, posterior=posterior, prior=prior)
    texts = sentences(20, seed=5)
    whole, state = vae.score(texts, seed=3), torch.get_rng_state()
    assert vae.score(texts, seed=3) == whole
    assert torch.equal(torch.get_rng_state(), state)
    assert [score["nll_elbo"] for score in vae.score(texts, seed=4)] != [score["nll_elbo"] for score in whole]
    with pytest.raises(UserError, match="lie on a sphere"):
        vae.fit_prior(texts)


def test_a_prior_is_fitted_to_draws_of_a_flow_whose_moments_are_approximations(values, tmp_path):
    vae = of_posterior(values, tmp_path, posterior={"kind": "flow", "transform": "coupling", "hidden_dim": 8})
    texts = sentences(400, seed=5)
    with torch.inference_mode():  # many draws of each
        drawn = torch.cat([vae.model.encode(batch).sample(torch.Size([50])) for _, batch in vae.batches(texts)], 1)
    rows = drawn.flatten(0, 1).double()
    fitted = vae.fit_prior(texts)()
    torch.testing.assert_close(fitted.mean.double(), rows.mean(0), rtol=0, atol=5 * float(rows.std(0).max()) / 20)
    torch.testing.assert_close(fitted.variance.double(), rows.var(0), rtol=0.4, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "flow"])
def test_a_prior_fitted_to_the_latents_is_saved_and_sampled_from(run, tmp_path, kind, capfdbinary):
    from textvae.cli import main

    moved = shutil.copytree(run, tmp_path / "run")
    before = textvae.load(moved)
    means, scales = before.encode_distribution(before.corpus_texts("train", 300))
    assert main(["fit-prior", str(moved), "--kind", kind, "--components", "3", "--sentences", "300"]) == 0
    assert b"300 sentences" in capfdbinary.readouterr().out
    after = textvae.load(moved)
    z = after.sample_latents(4000, seed=0)
    # The aggregate posterior's moments; a flow of a few steps is near them, not at them.
    slack = 0.5 if kind == "flow" else 0.15
    torch.testing.assert_close(z.mean(0), means.mean(0), atol=slack, rtol=0.1)
    spread = (means.var(0) + scales.square().mean(0)).sqrt()
    torch.testing.assert_close(z.std(0), spread, atol=slack, rtol=0.1)
    assert after.sample(5, seed=0) == textvae.load(moved).sample(5, seed=0)


def test_texts_of_characters_are_compared_by_character():
    assert spaced(["ab c"], "word") == ["ab c"]
    assert spaced(["ab c"], "character") == ["a b \u2581 c"]


def test_evaluate_describes_samples_and_paths_where_they_are_asked_for(vae, run, capfdbinary):
    result = vae.evaluate("test", samples=40, paths=4)
    assert 0 <= result["edit_distance"] <= 1
    assert result["samples"]["count"] == 40
    assert 0 < result["samples"]["distinct_1"] <= 1
    assert result["samples"]["novelty"] == pytest.approx(
        sum(text not in set(vae.corpus_texts("train", 10_000)) for text in vae.sample(40, seed=0)) / 40
    )
    assert result["paths"]["count"] == 4
    from textvae.cli import main

    assert main(["evaluate", str(run), "--samples", "20", "--paths", "2"]) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert "samples.self_bleu" in shown
    assert "paths.monotonicity" in shown


def test_annealing_checks_the_bound(vae):
    checked = vae.evaluate("test", anneal=10)["annealed"]
    assert checked["sentences"] == 10
    # Latents of many nats: fifty importance samples are a loose bound, which annealing goes below.
    assert 0 < checked["nll_ais"] < checked["nll_iw"] + 0.5
    assert checked["amortisation_gap"] > -0.1
    # The refined posterior's bound stays one, and lies above what annealing finds.
    assert checked["nll_ais"] - 0.5 < checked["nll_refined"] < math.inf
