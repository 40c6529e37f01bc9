"""The benchmarks at toy sizes: both sides still run, and still compute the same."""

import pytest
import torch

from tests.benchmarks import cases
from tests.benchmarks.case import Options
from tests.benchmarks.sizes import Sizes

TOY = Sizes(50, 6, 7, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("memory_only", [False, True])
def test_a_training_case_agrees_and_steps_on_both_sides(monkeypatch, optimizer, memory_only):
    monkeypatch.setattr(cases, "sentences", toy_sentences)
    case = cases.training(TOY, 4, 8, Options(optimizer=optimizer, quick=True), memory_only=memory_only)
    if case.check is not None:
        assert "gradients equal" in case.check()
    assert case.textbook is not None
    ours, theirs = case.ours()(), case.textbook()()
    assert ours == theirs
    assert ours.units > 0


def test_bfloat16_trains_on_both_sides(monkeypatch):
    monkeypatch.setattr(cases, "sentences", toy_sentences)
    case = cases.training(TOY, 4, 8, Options(quick=True, precision="bf16"))
    assert case.textbook is not None
    assert case.machine is not None
    assert case.ours()() == case.textbook()()
    assert case.machine().rates().total > 0


def test_both_sides_estimate_the_same_likelihood(monkeypatch):
    monkeypatch.setattr(cases, "SMALL", TOY)
    monkeypatch.setattr(cases, "sentences", toy_sentences)
    case = cases.importance(Options(quick=True))
    assert case.check is not None
    assert case.textbook is not None
    assert "nats" in case.check()
    assert case.ours()() == case.textbook()()


def toy_sentences(vocabulary: int, count: int | None = None):
    from textvae.text.batching import ListStore

    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, vocabulary, (2 + i % 5,), generator=draw).tolist() for i in range(count or 40)]
    return ListStore([[1, *row, 2] for row in rows])
