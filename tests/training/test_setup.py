"""What is made ready before the first step."""

import pytest

import textvae
from textvae.recipe import Recipe
from textvae.training import train


@pytest.fixture
def sorted_corpus(values, tmp_path):
    """A recipe on a file whose second half has other words than its first."""
    path = tmp_path / "sorted.txt"
    path.write_text("one two\n" * 50 + "three four\n" * 50)
    values["data"] = {"files": {"train": str(path), "validation": str(path)}}
    values["training"] |= {"max_steps": 1, "max_epochs": None}
    return values


def learned(values, run) -> list[str]:
    """What a sentence with all four words becomes."""
    tokenizer = textvae.load(train(Recipe.model_validate(values), run, quiet=True)).tokenizer
    return tokenizer.decode(tokenizer.encode(["one two three four"]))[0].split()


def test_a_tokenizer_learns_from_sentences_that_lie_evenly_over_a_held_corpus(sorted_corpus, tmp_path):
    sorted_corpus["data"]["tokenizer_sentences"] = 2
    assert learned(sorted_corpus, tmp_path / "run") == ["one", "two", "three", "four"]
    sorted_corpus["data"]["tokenizer_sentences"] = 1
    assert learned(sorted_corpus, tmp_path / "other") == ["one", "two", "<unk>", "<unk>"]


def test_a_tokenizer_learns_from_the_first_sentences_of_a_stream(sorted_corpus, tmp_path):
    sorted_corpus["data"] |= {"tokenizer_sentences": 50, "streaming": True}
    assert learned(sorted_corpus, tmp_path / "run") == ["one", "two", "<unk>", "<unk>"]
    sorted_corpus["data"]["tokenizer_sentences"] = 51
    assert learned(sorted_corpus, tmp_path / "other") == ["one", "two", "three", "four"]
