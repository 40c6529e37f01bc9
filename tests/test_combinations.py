"""Sections that contradict each other are refused when the recipe is read, with the reason and what to write."""

import copy
import time

import pytest

from textvae.build import problems
from textvae.recipe import Recipe

GRADIENT_FREE = {"cell": "gru", "hidden_dim": 8}


def found(**sections) -> list[str]:
    values = {
        "data": {"grammar": {}},
        "model": {"latent_dim": 4, "embedding_dim": 8, "encoder": GRADIENT_FREE, "decoder": GRADIENT_FREE},
        "training": {"max_steps": 1},
    }
    for path, value in sections.items():
        *parents, key = path.split("__")
        here = values
        for parent in parents:
            here = here.setdefault(parent, {})
        here[key] = copy.deepcopy(value)
    return problems(Recipe.model_validate(values))


IWAE = {"objective": {"reconstruction": {"kind": "importance_weighted"}}, "training__samples": 4}
STREAM = {"data": {"files": {"train": "a", "validation": "b"}, "streaming": True, "limit": {"train": 60}}}
VMF = {"model__posterior": {"kind": "von_mises_fisher"}, "objective": {"kl": None, "w": {"kind": "sliced_wasserstein"}}}
POINT = {"model__posterior": {"kind": "point"}, "objective": {"kl": None, "mmd": {"kind": "mmd"}}}
LM = {"model__latent_dim": 0, "objective": {"kl": None}}
REFUSED = {
    "a sphere's posterior without its prior, whatever the terms": (VMF, "their KL is infinite"),
    "a sphere's prior without its posterior": (
        {**VMF, "model__posterior": {"kind": "gaussian"}, "model__prior": {"kind": "uniform_sphere"}},
        "their KL is infinite",
    ),
    "points monitored by a bound": ({**POINT, "training__monitor": "nll_elbo"}, "training.monitor: nll_elbo is of a"),
    "an encoder of points that goes by information": ({**POINT, "training__aggressive": {}}, "training.aggressive:"),
    "an encoder for a language model": ({**LM, "training__start_from": {"run": "x"}}, "take part: all"),
    "moments of one sentence": (
        {"objective__w": {"kind": "w2", "over": "aggregate"}, "training__batch_size": 4, "training__accumulation": 4},
        "training.accumulation: got 4",
    ),
    "a statistic of one sentence": (
        {"objective__m": {"kind": "mmd"}, "training__batch_size": 1},
        "training.batch_size: got 1",
    ),
    "a head by a name of torch's": (
        {"objective__values": {"kind": "bag_of_words"}},
        "objective.values: 'values' is a name",
    ),
    "a reward held at a target": (
        {"objective__mi": {"kind": "mutual_information", "weight": {"kind": "geco", "target": 3.0}}},
        "objective.mi.weight: geco holds a cost",
    ),
    "a beginning without a way": (
        {"objective__kl": {"kind": "kl", "weight": {"kind": "pid", "start": 1.0}}},
        "objective.kl.weight.start:",
    ),
    "bounds in the wrong order": (
        {"objective__kl": {"kind": "kl", "weight": {"kind": "geco", "min": 2.0, "max": 1.0}}},
        "objective.kl.weight: min (2) is above max (1)",
    ),
    "a least above the largest there is": (
        {"objective__kl": {"kind": "kl", "weight": {"kind": "pid", "min": 2.0}}},
        "objective.kl.weight: min (2) is above max (1)",
    ),
    "clusters that fall": (
        {"model__output": {"kind": "adaptive_softmax", "cutoffs": [5, 3]}},
        "model.output.cutoffs: got [5, 3]",
    ),
    "a floor that is refined away": (
        {"model__posterior": {"kind": "delta"}, "training__semi_amortized": {"steps": 2}},
        "training.semi_amortized: moves posteriors out",
    ),
    "the first sentences of several readers": (
        {**STREAM, "data__stream_workers": 2, "objective__kl": {"kind": "kl", "weight": 1.0}},
        "data.limit.train: the first sentences of a stream",
    ),
    "iwae with one draw": ({**IWAE, "training__samples": 1}, "training.samples: got 1"),
    "iwae with a KL": ({**IWAE, "objective__kl": {"kind": "kl"}}, "objective.kl: the bound of importance_weighted"),
    "iwae on points": ({**IWAE, "model__posterior": {"kind": "point"}}, "objective.reconstruction"),
    "dreg on a sphere": (
        {**IWAE, "model__posterior": {"kind": "von_mises_fisher"}, "model__prior": {"kind": "uniform_sphere"}},
        "gradient: reparameterized",
    ),
    "a distance with a softmax": (
        {"objective": {"reconstruction": {"kind": "cosine"}}, "model__output": {"kind": "softmax"}},
        "objective.reconstruction.kind: cosine",
    ),
    "the other distance": (
        {"objective": {"reconstruction": {"kind": "cosine"}}, "model__output": {"kind": "nearest_embedding"}},
        "distance: cosine",
    ),
    "embeddings under cross entropy": ({"model__output": {"kind": "nearest_embedding"}}, "model.output.kind"),
    "a tied adaptive softmax": (
        {"model__output": {"kind": "adaptive_softmax"}, "model__tie_output": True},
        "model.tie_output: adaptive_softmax",
    ),
    "a tied nearest embedding": (
        {"objective": {"reconstruction": {"kind": "cosine"}}, "model__tie_output": True},
        "model.tie_output: nearest_embedding",
    ),
    "a head as monitor": (
        {
            "objective": {"kl": {"kind": "kl"}, "bag": {"kind": "bag_of_words"}},
            "training__monitor": "term_bag",
        },
        "training.monitor: term_bag",
    ),
    "refined points": (
        {"objective": {"kl": None}, "model__posterior": {"kind": "point"}, "training__semi_amortized": {}},
        "training.semi_amortized: refines mean and scale",
    ),
    "refining beside a critic": (
        {"objective": {"w": {"kind": "adversarial"}}, "training__semi_amortized": {}},
        "objective.w (adversarial) has a critic",
    ),
    "refining beside a controller": (
        {"objective": {"kl": {"kind": "kl", "weight": {"kind": "pid"}}}, "training__semi_amortized": {}},
        "objective.kl.weight (pid) is a controller",
    ),
    "refining and aggressive": (
        {"training__semi_amortized": {}, "training__aggressive": {}},
        "training.semi_amortized: cannot be combined with training.aggressive",
    ),
    "refining in half precision": (
        {"training__semi_amortized": {}, "training__precision": "fp16"},
        "training.semi_amortized: differences of gradients",
    ),
    "pieces of one sentence under statistics": (
        {"objective__mmd": {"kind": "mmd"}, "training__batch_size": 16, "training__accumulation": 9},
        "training.accumulation: got 9 for batches of 16; objective.mmd looks at",
    ),
    "pieces of one sentence, normalised": (
        {"model__posterior": {"kind": "batch_norm"}, "training__batch_size": 4, "training__accumulation": 4},
        "training.accumulation: got 4 for batches of 4; model.posterior looks at",
    ),
    "noise for an encoder that is none": (
        {"model__latent_dim": 0, "objective": {}, "model__noise": [{"kind": "delete"}]},
        "model.noise: is of an encoder and its latents",
    ),
    "draws of no latents": (
        {"model__latent_dim": 0, "objective": {}, "training__samples": 2},
        "training.samples: is of an encoder and its latents",
    ),
    "a language model's KL as monitor": (
        {"model__latent_dim": 0, "objective": {}, "training__monitor": "kl"},
        "training.monitor (kl): is of an encoder and its latents",
    ),
    "a part of an epoch of unknown length": (
        {**STREAM, "data__limit": None, "training__evaluate_every": "0.5 epochs"},
        "training.evaluate_every: got '0.5 epochs'; how long an epoch of a stream",
    ),
    "an average of batch-normalised parameters": (
        {"model__posterior": {"kind": "batch_norm"}, "training__average": {"kind": "exponential"}},
        "training.average: statistics of batch normalisation",
    ),
    "a floor under a prior that moves": (
        {"model__posterior": {"kind": "delta"}, "model__prior": {"kind": "gaussian"}},
        "model.prior: gaussian can move",
    ),
    "a target under the floor of a posterior": (
        {
            "model__posterior": {"kind": "delta", "delta": 6.0},
            "objective": {"kl": {"kind": "kl", "weight": {"kind": "geco", "target": 4.0}}},
        },
        "objective.kl.weight.target: got 4, and by model.posterior.delta the term is never below 6",
    ),
    "a target under free bits": (
        {"objective": {"kl": {"kind": "kl", "free_nats": 8.0, "weight": {"kind": "pid", "target": 5.0}}}},
        "objective.kl.weight.target: got 5, and by free_nats the term is never below 8",
    ),
    "a controller of a constant": (
        {
            "model__posterior": {"kind": "von_mises_fisher"},
            "model__prior": {"kind": "uniform_sphere"},
            "objective": {"kl": {"kind": "kl", "weight": {"kind": "geco", "target": 30.0}}},
        },
        "objective.kl.weight: geco would move a KL that is the same number",
    ),
    "a temperature of what draws nothing": (
        {"generation": {"method": "greedy", "temperature": 0.5}},
        "generation.temperature: got 0.5 with method 'greedy'",
    ),
    "an unknown distance": (
        {
            "objective": {"reconstruction": {"kind": "cosine"}},
            "model__output": {"kind": "nearest_embedding", "distance": "cosin"},
        },
        "Did you mean 'cosine'",
    ),
}


@pytest.mark.parametrize(("sections", "message"), REFUSED.values(), ids=REFUSED)
def test_a_contradiction_is_named_with_its_key(sections, message):
    assert any(message in problem for problem in found(**sections)), found(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        IWAE,
        {**IWAE, "objective__mmd": {"kind": "mmd"}},
        {"objective": {"kl": {"kind": "kl"}, "bag": {"kind": "bag_of_words", "hidden_dim": 0}}},
        {"objective": {"reconstruction": {"kind": "squared_error"}, "kl": {"kind": "kl"}}},
        {"training__semi_amortized": {"steps": 2}},
        {"objective__mmd": {"kind": "mmd"}, "training__batch_size": 16, "training__accumulation": 8},
        {"training__batch_size": 4, "training__accumulation": 4},
        # Infinite between some distributions, and finite where a training begins.
        {"objective": {"renyi": {"kind": "renyi", "alpha": 5.0}}, "model__latent_dim": 32},
        # Two densities on one sphere.
        {
            "model__posterior": {"kind": "von_mises_fisher"},
            "model__prior": {"kind": "vamp"},
            "objective": {"jeffreys": {"kind": "jeffreys"}},
        },
    ],
)
def test_what_belongs_together_is_taken(sections):
    assert found(**sections) == []


def test_a_schedule_of_ones_own_may_mind_how_long_the_training_is(tmp_path, monkeypatch):
    """That is known when the corpus is read, and the recipe's check invents no other length."""
    (tmp_path / "held_back.py").write_text(
        "class Held:\n"
        "    def __init__(self, horizon, *, hold: int = 0):\n"
        "        if horizon.total_steps is not None and hold >= horizon.total_steps:\n"
        "            raise ValueError('hold: nothing of the training is left')\n"
        "    def __call__(self, step, value=None):\n"
        "        return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    term = {"kind": "kl", "weight": {"kind": "held_back.Held", "hold": 20_000}}
    assert found(objective={"kl": term}, training__max_steps=100_000) == []


def test_a_distance_of_embeddings_writes_its_output_layer_into_the_recipe():
    recipe = Recipe.model_validate(
        {"data": {"grammar": {}}, "objective": {"reconstruction": {"kind": "cosine"}}, "training": {"max_steps": 1}}
    )
    assert recipe.resolved()["model"]["output"] == {"kind": "nearest_embedding", "distance": "cosine"}
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_a_check_takes_no_longer_for_terms_of_large_sizes():
    ascent = {"kind": "max_sliced_wasserstein", "starts": 10_000, "steps": 10_000}
    began = time.monotonic()
    assert found(objective__w=ascent, objective__s={"kind": "sinkhorn", "iterations": 10_000}) == []
    assert time.monotonic() - began < 60  # hours, and 200 GB, at the sizes themselves
