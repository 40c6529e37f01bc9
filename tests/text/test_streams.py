"""Streams read by workers and by several processes: nothing twice, nothing lost, the same order again."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import yaml
from conftest import ROOT, has_rows, sentences
from safetensors.torch import load_file

from textvae.checkpoint import latest_checkpoint
from textvae.errors import CorpusError, UserError
from textvae.recipe import Data, Recipe
from textvae.text import corpora, encoding, streams, tokenizers
from textvae.text.streams import Reader, SharedStreamBatches, StreamBatches
from textvae.training import train

FILES = 4
TEXTS = [[f"f{file} {line}" for line in sentences(40 + 5 * file, file)] for file in range(FILES)]
EVERYTHING = sorted(itertools.chain(*TEXTS))


@pytest.fixture
def data(tmp_path):
    paths = []
    for number, texts in enumerate(TEXTS):
        path = tmp_path / f"train-{number}.txt"
        path.write_text("\n".join([*texts, "", "  "]) + "\n")  # two empty lines each, to be counted
        paths.append(str(path))
    validation = tmp_path / "validation.txt"
    validation.write_text("f0 the cat sees the dog\n" * 5)
    return {"files": {"train": paths, "validation": str(validation)}, "streaming": True}


@pytest.fixture
def encoded(data):
    recipe = Data.model_validate(data)
    corpus = corpora.load(recipe)
    tokenizer = tokenizers.train({"kind": "word"}, EVERYTHING)
    found = encoding.encode(corpus, tokenizer, recipe)
    found.dropped["train"].clear()
    return found, tokenizer


def texts_of(rows, tokenizer) -> list[str]:
    return tokenizer.decode([list(row) for row in rows])


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 5])
def test_workers_read_every_sentence_once_in_the_same_order_again_and_count_what_is_left_out(encoded, workers):
    found, tokenizer = encoded
    read = Reader(found.parts["train"], found.dropped["train"], workers=workers)
    first = list(read())
    assert sorted(texts_of(first, tokenizer)) == EVERYTHING
    assert found.dropped["train"] == {"empty": 2 * FILES}
    assert list(read()) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_shares_are_whole_files_where_these_can_be_shared_out(encoded, workers):
    found, tokenizer = encoded
    shares = [
        texts_of(Reader(found.parts["train"], {}, workers=workers, share=(number, 2))(), tokenizer)
        for number in range(2)
    ]
    files_of = [{text.split()[0] for text in share} for share in shares]
    assert not files_of[0] & files_of[1]
    assert sorted(itertools.chain(*shares)) == EVERYTHING


def test_shares_of_files_that_do_not_go_evenly_are_every_nth_sentence(encoded):
    found, tokenizer = encoded
    shares = [texts_of(Reader(found.parts["train"], {}, share=(number, 3))(), tokenizer) for number in range(3)]
    assert sorted(itertools.chain(*shares)) == EVERYTHING
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_what_stops_a_worker_is_said_as_without_one(data):
    with open(data["files"]["train"][2], "ab") as file:
        file.write(b"broken \xff\n")
    recipe = Data.model_validate(data)
    corpus = corpora.load(recipe)
    part = encoding.encode(corpus, tokenizers.train({"kind": "word"}, EVERYTHING), recipe).parts["train"]

    def said(workers):
        with pytest.raises(CorpusError) as caught:
            list(Reader(part, {}, workers=workers)())
        return str(caught.value)

    assert "train-2.txt" in said(0)
    assert said(2) == said(0)


class Group:
    """Processes as threads: each gets what all have given."""

    def __init__(self, world: int) -> None:
        self.barrier, self.given = threading.Barrier(world), {}

    def all_results(self, results):
        self.given.update(results)
        self.barrier.wait(timeout=30)
        together = [self.given[number] for number in sorted(self.given)]
        self.barrier.wait(timeout=30)
        return together


def steps_of(parts, monkeypatch, **options):
    """The steps of each process, run side by side."""
    group, found = Group(len(parts)), {}
    monkeypatch.setattr(streams, "all_results", group.all_results)

    def work(rank):
        batches = SharedStreamBatches(lambda: iter(parts[rank]), 0, process=(rank, len(parts)), **options)
        found[rank] = list(batches.epoch(0, skip=options.get("skip", 0)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return [found[rank] for rank in range(len(parts))]


def ids(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [[1, *([3 + seed] * length), 2] for length in lengths]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_parts_of_a_step_are_one_batch(monkeypatch, accumulation, batch_tokens):
    parts = [ids(100, rank) for rank in range(3)]
    each = steps_of(parts, monkeypatch, buffer=30, batch_size=12, batch_tokens=batch_tokens, accumulation=accumulation)
    assert len({len(steps) for steps in each}) == 1
    for together in zip(*each):
        pieces = [piece for step in together for piece in step.pieces]
        assert sorted(torch.cat([piece.rows for piece in pieces]).tolist()) == list(range(together[0].sentences))
        assert {step.sentences for step in together} == {together[0].sentences}
        assert {step.tokens for step in together} == {sum(int(piece.batch.lengths.sum()) for piece in pieces)}
        # The mean over pieces of share x (mean over a piece) is the mean over the batch.
        lengths = torch.cat([piece.batch.lengths for piece in pieces]).double()
        mean = sum(piece.share * float(piece.batch.lengths.double().mean()) for piece in pieces) / len(pieces)
        assert mean == pytest.approx(float(lengths.mean()))
    for rank, steps in enumerate(each):
        tokens = [row for step in steps for piece in step.pieces for row in piece.batch.tokens.tolist()]
        assert {row[1] for row in tokens} == {3 + rank}  # nobody reads another's share
        assert len(tokens) <= 100
        if batch_tokens is None:
            assert len(tokens) == 100  # even shares are read to their end


def test_buckets_of_a_buffer_are_what_is_sorted_by_length():
    lengths = torch.randint(1, 60, (640,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [[1, *[5] * length, number + 10] for number, length in enumerate(lengths)]
    padding = {}
    for bucket in (1, 5, 1_000):
        batches = StreamBatches(lambda: iter(rows), 0, buffer=320, batch_size=16, bucket_batches=bucket)
        seen, padded = [], 0
        for step in batches.epoch(0):
            (piece,) = step.pieces
            seen += [int(tokens[length]) for tokens, length in zip(piece.batch.tokens, piece.batch.lengths)]
            padded += int((piece.batch.tokens == 0).sum())
        assert sorted(seen) == [number + 10 for number in range(640)]
        padding[bucket] = padded
    assert padding[1] > 2 * padding[5] > 3 * padding[1_000]


def test_an_epoch_ends_with_the_shortest_share(monkeypatch):
    each = steps_of([ids(20, 0), ids(90, 1)], monkeypatch, buffer=10, batch_size=8)
    assert [sum(len(piece.rows) for step in steps for piece in step.pieces) for steps in each] == [20, 20]


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(CorpusError, match=r"training.batch_size: got 9, which 2 processes"):
        SharedStreamBatches(lambda: iter([]), 0, buffer=10, batch_size=9, process=(0, 2))


@pytest.fixture
def small(values, data):
    values["data"] = {**data, "stream_workers": 2, "shuffle_buffer": 64}
    values["training"].update(
        optimizer={"kind": "sgd", "lr": 0.05}, batch_size=16, max_steps=12, evaluate_every=6, log_every=1
    )
    return values


def trained(values, folder, run, *arguments, quiet=True):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    command = [sys.executable, "-m", "textvae", "train", str(path), "--out", str(run), *arguments]
    command += ["--quiet"] if quiet else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def parameters(run):
    return load_file(latest_checkpoint(run) / "model.safetensors")


def test_a_training_with_workers_resumes_to_the_bit(small, tmp_path):
    whole = train(Recipe.model_validate(small), tmp_path / "whole", quiet=True)
    small["training"]["max_steps"] = 7
    run = train(Recipe.model_validate(small), tmp_path / "run", quiet=True)
    small["training"]["max_steps"] = 12
    train(Recipe.model_validate(small), run, resume=True, quiet=True)
    for name, tensor in parameters(whole).items():
        assert torch.equal(parameters(run)[name], tensor), name


@pytest.mark.slow
def test_processes_with_shares_of_a_stream_take_the_step_of_one_that_has_it_all(small, tmp_path):
    # One step whose batch is the corpus, 90 and 100 sentences: then how it is shared out does not matter.
    count = 2 * len(EVERYTHING)
    small["data"] |= {"stream_shares": True, "shuffle_buffer": count}
    small["training"] |= {"batch_size": count, "max_steps": 1, "evaluate_every": 1}
    small["objective"] = {"kl": None, "mmd": {"kind": "mmd", "weight": 3.0}}
    small["model"]["posterior"] = {"kind": "point"}
    small["model"]["latent_dim"] = 4
    one = train(Recipe.model_validate(small), tmp_path / "one", quiet=True)
    started = trained(small, tmp_path, tmp_path / "two", "--processes", "2", quiet=False)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 0, said
    assert f"left out or cut: {2 * len(TEXTS)} empty" in said  # by both together
    for name, tensor in parameters(one).items():
        torch.testing.assert_close(parameters(tmp_path / "two")[name], tensor, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_a_step_is_said(small, tmp_path, workers):
    (tmp_path / "short.txt").write_text("a\n")  # of the training part every sentence is longer
    small["data"]["files"] = {**small["data"]["files"], "validation": str(tmp_path / "short.txt")}
    small["data"] |= {"stream_workers": workers, "max_length": 2}
    with pytest.raises(CorpusError, match="training part gives no step"):
        train(Recipe.model_validate(small), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(("every", "epochs"), [("1 epoch", [1, 2, 3, 4]), ("2 epochs", [2, 4])])
def test_epochs_between_evaluations_of_a_stream_are_counted(small, tmp_path, every, epochs):
    small["training"] |= {"max_steps": None, "max_epochs": 4, "evaluate_every": every}
    run = train(Recipe.model_validate(small), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["part"] == "train"]
    found = [row["step"] for row in rows if row["part"] == "validation"]
    assert found == [max(steps) * epoch // 4 for epoch in epochs]


def test_a_part_of_an_epoch_of_a_stream_is_refused(small, tmp_path):
    small["training"]["evaluate_every"] = "0.5 epochs"
    with pytest.raises(UserError, match=r"evaluate_every: got '0.5 epochs'; how long an epoch of a stream"):
        train(Recipe.model_validate(small), tmp_path / "run", quiet=True)


def test_an_interruption_that_reaches_the_workers_too_still_saves(small, tmp_path):
    small["training"] |= {"max_steps": 10**6, "evaluate_every": 10**6, "save_every": 10**6}
    run = tmp_path / "run"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small, sort_keys=False))
    command = [sys.executable, "-m", "textvae", "train", str(path), "--out", str(run), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not has_rows(run):
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert said.count("\n") == 1
    assert latest_checkpoint(run) is not None
