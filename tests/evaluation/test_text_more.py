"""chrF as sacrebleu's command line prints it, edit distance by its definition, figures by length by hand."""

from __future__ import annotations

import functools
import itertools
import random
import subprocess
import sys

import pytest
from conftest import sentences

from textvae.errors import UserError
from textvae.evaluation.text import (
    bleu,
    by_length,
    chrf,
    edit_distance,
    edit_distances,
    exact_match,
    levenshtein,
    token_accuracy,
)


def garbled(texts: list[str], seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(word[::-1] if draw.random() < 0.3 else word for word in text.split()) for text in texts]


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_what_sacrebleus_command_line_prints(word_order, tmp_path):
    references = sentences(30, seed=1)
    hypotheses = garbled(references)
    (tmp_path / "references").write_text("".join(f"{text}\n" for text in references))
    (tmp_path / "hypotheses").write_text("".join(f"{text}\n" for text in hypotheses))
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "chrf", "-b", "-w", "9"]
    done = subprocess.run(
        [*command, "--chrf-word-order", str(word_order)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = chrf(hypotheses, references, word_order=word_order)
    assert found == pytest.approx(float(done.stdout), abs=1e-8)
    assert 20 < found < 95


def by_definition(a: str, b: str) -> int:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        swap = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(swap, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


def test_the_edit_distance_is_its_recursions():
    short = ["".join(word) for n in range(4) for word in itertools.product("abc", repeat=n)]
    draw = random.Random(0)
    long = ["".join(draw.choices("abcd", k=draw.randrange(60, 140))) for _ in range(6)]
    pairs = [*itertools.product(short, repeat=2), *itertools.product(long, repeat=2)]
    assert [levenshtein(a, b) for a, b in pairs] == [by_definition(a, b) for a, b in pairs]


def test_edit_distances_by_hand():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein(["a", "b", "c", "d"], ["a", "c", "d", "e"]) == 2
    pairs = [("a b c", "a b c"), ("b c", "a b c"), ("", "a b"), ("", ""), ("x", "a b c d")]
    assert edit_distances(*zip(*pairs)) == pytest.approx([0, 1 / 3, 1, 0, 1])
    assert edit_distance(*zip(*pairs)) == pytest.approx((1 / 3 + 1 + 1) / 5)
    assert edit_distance(["CCO"], ["CCN"], tokens=list) == pytest.approx(1 / 3)
    assert edit_distance(["CCO"], ["CCN"]) == 1


def test_buckets_hold_what_their_sentences_give_alone_and_empty_ones_are_left_out():
    references = [*sentences(40, seed=3), "a b", "a b c"]
    hypotheses = [*garbled(references[:40]), "a b", "a x c"]
    rows = by_length(hypotheses, references, edges=(2, 3, 4, 6))
    assert [(row["shortest"], row["longest"]) for row in rows] == [(2, 2), (3, 3), (5, 6), (7, 8)]
    assert sum(row["texts"] for row in rows) == 42
    assert [row["bleu"] for row in rows[:2]] == [None, None]
    assert (rows[0]["exact_match"], rows[1]["exact_match"], rows[1]["token_accuracy"]) == (1, 0, pytest.approx(2 / 3))
    chosen = [i for i, text in enumerate(references) if 5 <= len(text.split()) <= 6]
    some = [hypotheses[i] for i in chosen], [references[i] for i in chosen]
    for name, score in {"bleu": bleu, "chrf": chrf, "edit_distance": edit_distance, "exact_match": exact_match}.items():
        assert rows[2][name] == score(*some)
    assert rows[2]["texts"] == len(chosen)


def test_one_bucket_has_the_whole_sets_figures_and_empty_texts_have_figures_too():
    references = ["", *sentences(10)]
    hypotheses = ["x", *garbled(references[1:])]
    (row,) = by_length(hypotheses, references, edges=(100,))
    assert row["token_accuracy"] == token_accuracy(hypotheses, references)
    assert row["bleu"] == bleu(hypotheses, references)
    (row,) = by_length([""], [""])
    assert (row["shortest"], row["edit_distance"], row["exact_match"], row["bleu"]) == (0, 0, 1, None)


def test_what_cannot_be_scored_is_refused():
    for score in (chrf, edit_distance, edit_distances, by_length):
        with pytest.raises(UserError, match="in pairs; got 1 and 2"):
            score(["a"], ["a", "b"])
    with pytest.raises(UserError, match=r"edges: got \[5, 5\]"):
        by_length(["a"], ["a"], edges=(5, 5))
    with pytest.raises(UserError, match="word_order: got -1"):
        chrf(["a"], ["a"], word_order=-1)
