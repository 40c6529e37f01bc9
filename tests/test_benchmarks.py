"""The benchmarks at toy sizes: both sides still run, and still compute the same."""

import gzip

import pytest
import torch
import yaml
from conftest import sentences

from tests.benchmarks import cases, corpora
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


def test_a_corpus_without_a_train_part_is_trained_on_another_and_its_epochs_are_counted(monkeypatch, tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    for part, count in {"valid": 60, "test": 20}.items():
        with gzip.open(folder / f"{part}.txt.gz", "wt") as file:
            file.writelines(f"{text}\n" for text in sentences(count))
    values = {
        "data": {"files": {part: f"nowhere/{part}.txt" for part in ("train", "validation", "test")}, "column": "text"},
        "model": {"latent_dim": 0, "embedding_dim": 4, "decoder": {"hidden_dim": 4}},
        "training": {"batch_size": 10, "max_epochs": 3},
    }
    (tmp_path / "toy-lm.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.setattr(corpora, "RECIPES", tmp_path)
    row = corpora.run_one("lm", 0, tmp_path / "out", family="toy", data=tmp_path, samples=2, tested=15, device="cpu")
    assert (row["method"], row["epochs"], row["sentences"]) == ("lm", 3, 15)
    assert row["seconds_an_epoch"] == pytest.approx(row["minutes"] * 60 / 3)
