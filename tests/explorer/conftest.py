"""A small run on the built-in corpus, and the sentences of its map."""

import pytest
from conftest import train_on_grammar

import textvae
from textvae.explorer.views import Views, grammar_labels
from textvae.text import grammar


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return train_on_grammar(tmp_path_factory.mktemp("explorer") / "run", steps=250)


@pytest.fixture(scope="session")
def vae(run):
    return textvae.load(run)


@pytest.fixture(scope="session")
def texts():
    return grammar.sentences(0, "test", 200)


@pytest.fixture(scope="session")
def views(vae, texts):
    return Views(vae, texts, grammar_labels(texts))
