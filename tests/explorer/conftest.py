"""A small run on the built-in corpus, and its page served for a browser."""

import pytest

import textvae
from textvae.explorer.views import Views, grammar_labels
from textvae.recipe import Recipe
from textvae.text import grammar
from textvae.training import train

VALUES = {
    "data": {"grammar": {"seed": 0, "train": 2000, "validation": 100, "test": 200}},
    "model": {
        "latent_dim": 8,
        "embedding_dim": 32,
        "encoder": {"cell": "gru", "hidden_dim": 48},
        "decoder": {"cell": "gru", "hidden_dim": 64},
    },
    "objective": {"kl": {"kind": "kl", "weight": 0.2}, "bag": {"kind": "bag_of_words", "weight": 1.0}},
    "training": {
        "batch_size": 32,
        "max_steps": 250,
        "evaluate_every": 250,
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "threads": 1,
    },
    "evaluation": {"iw_samples": 2},
    "generation": {"max_length": 25},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer") / "run"
    train(Recipe.model_validate(VALUES), folder, quiet=True)
    return folder


@pytest.fixture(scope="session")
def vae(run):
    return textvae.load(run)


@pytest.fixture(scope="session")
def texts():
    return grammar.sentences(0, "test", 200)


@pytest.fixture(scope="session")
def views(vae, texts):
    return Views(vae, texts, grammar_labels(texts))
