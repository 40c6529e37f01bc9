"""Scores of texts: BLEU as sacrebleu's command line prints it, the others as one counts them by hand."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from conftest import sentences

from textvae.evaluation.text import bleu, exact_match, token_accuracy


def garbled(texts: list[str], seed: int = 0) -> list[str]:
    """Texts with some words replaced, left out and added."""
    draw = random.Random(seed)
    words = sorted({word for text in texts for word in text.split()})
    result = []
    for text in texts:
        kept = [draw.choice(words) if draw.random() < 0.2 else word for word in text.split() if draw.random() > 0.1]
        result.append(" ".join(kept + draw.choice([[], [draw.choice(words)]])))
    return result


@pytest.mark.parametrize("tokenize", ["none", "13a"])
def test_bleu_is_what_sacrebleus_command_line_prints(tokenize, tmp_path):
    references = [f"{text} , it 's ( ok ) ." for text in sentences(60, seed=1)]
    hypotheses = garbled(references)
    (tmp_path / "references").write_text("".join(f"{text}\n" for text in references), encoding="utf-8")
    (tmp_path / "hypotheses").write_text("".join(f"{text}\n" for text in hypotheses), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "-b", "-w", "9"]
    done = subprocess.run(
        [*command, "--force", "--tokenize", tokenize], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = bleu(hypotheses, references, tokenize=tokenize)
    assert found == pytest.approx(float(done.stdout), abs=1e-8)
    assert 20 < found < 90


def test_bleu_by_hand():
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, and of 2 quadruples none: smoothed to 1/2 of one.
    found = bleu(["a b c x d"], ["a b c y d"])
    assert found == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25)


def test_bleu_is_100_for_equal_texts_and_near_0_for_others():
    texts = sentences(20)
    assert bleu(texts, texts) == pytest.approx(100)
    assert bleu(["x y z w v u"] * 20, texts) < 2
    assert bleu([""] * 20, texts) == 0


def test_an_unknown_tokenizer_of_bleu_is_named_with_a_suggestion():
    with pytest.raises(ValueError, match=r"tokenize: got '13b'; known: .*Did you mean '13a'\?"):
        bleu(["a"], ["a"], tokenize="13b")


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c", "a b c", 1),
        ("a x c", "a b c", 2 / 3),
        ("b c", "a b c", 0),  # at their place, not anywhere
        ("a b", "a b c d", 2 / 4),  # words left out cost
        ("a b c d", "a b", 2 / 4),  # and so do words added
        ("", "a b", 0),
        ("a", "", 0),
        ("  a   b ", "a b", 1),
        ("", "", 0),
    ],
)
def test_token_accuracy_by_hand(hypothesis, reference, expected):
    assert token_accuracy([hypothesis], [reference]) == pytest.approx(expected)


def test_token_accuracy_is_over_all_words_and_not_the_mean_over_texts():
    assert token_accuracy(["a", "x x x"], ["a", "b c d"]) == pytest.approx(1 / 4)


def test_exact_match_is_the_share_of_texts_given_back_to_the_letter():
    assert exact_match(["a b", "a  b", "A b", ""], ["a b", "a b", "a b", ""]) == pytest.approx(2 / 4)


@pytest.mark.parametrize("score", [bleu, token_accuracy, exact_match])
@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_texts_that_do_not_pair_up_are_refused(score, hypotheses, references):
    expected = f"in pairs; got {len(hypotheses)} and {len(references)}"
    with pytest.raises(ValueError, match=expected):
        score(hypotheses, references)
