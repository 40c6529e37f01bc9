"""A small run on the built-in corpus, for all tests of the toolbox."""

import pytest
from conftest import train_on_grammar

import textvae
from textvae.text import grammar

SENTENCES = 4000


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return train_on_grammar(tmp_path_factory.mktemp("toolbox") / "run")


@pytest.fixture(scope="session")
def vae(run):
    return textvae.load(run)


@pytest.fixture(scope="session")
def corpus():
    return grammar.sentences(0, "train", SENTENCES)


@pytest.fixture(scope="session")
def unseen():
    return grammar.sentences(0, "test", 400)
