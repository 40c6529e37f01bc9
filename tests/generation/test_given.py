"""Mistakes in what a caller hands over: one message each, and nothing that is right is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from textvae.errors import UserError
from textvae.generation import given


def test_what_is_right_comes_through():
    assert given.texts(("a", "", "a\0b")) == ["a", "", "a\0b"]
    assert given.texts(np.array(["a", "bc"])) == ["a", "bc"]
    assert given.texts(text for text in ["a"]) == ["a"]
    assert given.texts([]) == []
    assert given.sentence(" a ", "b") == " a "
    z = given.latents([[1, 2.5]], 2)
    assert (z.dtype, z.tolist()) == (torch.float32, [[1.0, 2.5]])
    assert given.latents(torch.zeros(0, 3), 3).shape == (0, 3)
    assert given.latents(torch.zeros(5, 0), 0).shape == (5, 0)
    assert given.latents([[given.FARTHEST, -given.FARTHEST]], 2).isfinite().all()
    assert given.count(np.int64(3), "n") == 3
    assert given.seed(None) is None
    assert given.seed(-5) == -5
    assert torch.Generator().manual_seed(given.seed(2**63 - 1))
    assert given.size(np.float32(0.5), "radius") == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: given.texts("the cook"), r"texts: got the single text 'the cook'; a list"),
        (lambda: given.texts(b"the cook"), "texts: got the single text"),
        (lambda: given.texts(None, "corpus"), "corpus: got None; a list"),
        (lambda: given.texts(["a", 1]), "texts: item 1 is 1; each must be a text"),
        (lambda: given.texts([["a"]]), "texts: item 0 is"),
        (lambda: given.sentence("", "b"), "b: is empty"),
        (lambda: given.sentence(" \t\n", "b"), "b: is empty"),
        (lambda: given.sentence(["a"], "b"), "b: got"),
        (lambda: given.latents(torch.zeros(3), 3), r"z: got shape \(3,\); it must be \(N, 3\)"),
        (lambda: given.latents(torch.zeros(2, 3, 4), 4), r"z: got shape \(2, 3, 4\)"),
        (lambda: given.latents("zeros", 4), "z: got 'zeros'; numbers"),
        (lambda: given.latents(None, 4), "z: got None; numbers"),
        (lambda: given.latents([[1.0], [1.0, 2.0]], 1), "z: got .* numbers"),
        (lambda: given.latents([[0.0, 1.0], [math.nan, 1.0]], 2), "z: row 1 holds nan; NaN, infinite"),
        (lambda: given.latents([[0.0, -math.inf]], 2), "z: row 0 holds -inf"),
        (lambda: given.latents([[1e200]], 1), "z: row 0 holds inf"),
        (lambda: given.latents([[1e30]], 1), r"z: row 0 holds 1e\+30"),
        (lambda: given.count(2.5, "n"), "n: got 2.5; it must be a whole number"),
        (lambda: given.count("3", "n"), "n: got '3'"),
        (lambda: given.count(-1, "n"), "n: got -1; it must be 0 or more"),
        (lambda: given.count(10**30, "n"), "n: got 10+; it must be at most 100,000,000"),
        (lambda: given.seed("x"), "seed: got 'x'"),
        (lambda: given.seed(2**63), "seed: got 9223372036854775808; it must be at most"),
        (lambda: given.size(math.nan, "strength"), "strength: got nan; it must be finite, from -1000 to 1000"),
        (lambda: given.size(1e30, "strength"), r"strength: got 1e\+30"),
        (lambda: given.size("far", "strength"), "strength: got 'far'; it must be a number"),
        (lambda: given.device("gpu"), "device: got 'gpu'"),
        (lambda: given.device("meta"), "device: got 'meta'"),
        (lambda: given.device("hpu"), "device: got 'hpu'"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
