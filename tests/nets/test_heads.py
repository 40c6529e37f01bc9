"""Heads: what z alone says of a sentence's words, counted by hand, and never any padding or order."""

import math

import pytest
import torch

from textvae.nets.heads import BagOfWords
from textvae.text.batching import collate

ROWS = [[2, 5, 6, 3], [2, 6, 3], [2, 3]]
PAD, VOCABULARY, D = 0, 9, 4


def head(hidden_dim: int = 0) -> BagOfWords:
    torch.manual_seed(0)
    return BagOfWords(D, VOCABULARY, hidden_dim=hidden_dim).double()


@pytest.mark.parametrize("hidden_dim", [0, 7])
def test_the_loss_is_the_words_log_probability_summed_without_the_end(hidden_dim):
    module, z = head(hidden_dim), torch.randn(2, 3, D, dtype=torch.float64)
    features = z if module.hidden is None else torch.tanh(module.hidden(z))
    log_p = torch.log_softmax(module.words(features), -1)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for s in range(2):
        for i, row in enumerate(ROWS):
            expected[s, i] = -sum(log_p[s, i, word] for word in row[1:-1])
    torch.testing.assert_close(module(collate(ROWS, PAD), z), expected)


def test_a_head_that_knows_nothing_pays_log_v_a_word():
    module = head()
    torch.nn.init.zeros_(module.words.weight)
    torch.nn.init.zeros_(module.words.bias)
    loss = module(collate(ROWS, PAD), torch.randn(1, 3, D, dtype=torch.float64))
    torch.testing.assert_close(loss[0], torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64) * math.log(VOCABULARY))


def test_the_order_of_the_words_and_padding_change_nothing():
    module, z = head(5), torch.randn(1, 1, D, dtype=torch.float64)
    one = module(collate([[2, 5, 6, 7, 3]], PAD), z)
    torch.testing.assert_close(module(collate([[2, 7, 5, 6, 3]], PAD), z), one)
    padded = module(collate([[2, 5, 6, 7, 3], [2, 4, 4, 4, 4, 4, 3]], PAD), z.expand(1, 2, D))
    torch.testing.assert_close(padded[:, :1], one)


def test_no_hidden_layer_is_smaller_than_nothing():
    from textvae.nets.heads import HEADS

    assert HEADS.problems({"kind": "bag_of_words", "hidden_dim": -1}, "objective.bag")
