"""Cases before the first step: a corpus tokenised, its batches made, and the time until something happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import textbook
from tests.benchmarks.case import Case, Done, Options, Run, after
from tests.benchmarks.models import recipe_of
from tests.benchmarks.sizes import SMALL, lines
from tests.benchmarks.textbook_training import BATCH, rows
from textvae.recipe_file import dump
from textvae.text import corpora, encoding, tokenizers
from textvae.text.batching import Batches, TokenStore
from textvae.training.setup import learned_from
from textvae.types import Tokenizer

VALIDATION = 10
ROOT = Path(__file__).resolve().parents[2]


class _Corpus:
    """The corpus as a text file in a folder that lives as long as this, and its recipe."""

    def __init__(self, options: Options) -> None:
        chosen = lines()[: 2_000 if options.quick else None]
        self.kept = tempfile.TemporaryDirectory(prefix="textvae-benchmarks-")
        self.folder = Path(self.kept.name)
        self.train = self.folder / "train.txt"
        validation = self.folder / "validation.txt"
        self.train.write_text("\n".join(chosen) + "\n", encoding="utf-8")
        validation.write_text("\n".join(chosen[:VALIDATION]) + "\n", encoding="utf-8")
        files = {"train": str(self.train), "validation": str(validation)}
        self.recipe = recipe_of(SMALL, "sgd", {"files": files}, BATCH)
        self.tokens = sum(len(line.split()) + 1 for line in chosen)
        self.done = Done(self.tokens, self.tokens)

    def encoded(self) -> tuple[TokenStore, Tokenizer]:
        """Returns the ids and the tokenizer; nothing is found in a cache."""
        import datasets

        kept = datasets.config.HF_DATASETS_CACHE
        datasets.config.HF_DATASETS_CACHE = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            corpus = corpora.load(self.recipe.data)
            tokenizer = tokenizers.train(self.recipe.tokenizer.as_dict(), learned_from(corpus, None))
            return TokenStore(encoding.encode(corpus, tokenizer, self.recipe.data).parts["train"]), tokenizer
        finally:
            datasets.config.HF_DATASETS_CACHE = kept

    def batches(self) -> Batches:
        store, tokenizer = self.encoded()
        return Batches(store, tokenizer.pad_id, batch_size=BATCH)


def tokenising(options: Options) -> Case:
    """From a text file to ids, the vocabulary made on the way."""
    corpus = _Corpus(options)

    def check() -> str:
        store, tokenizer = corpus.encoded()
        found, words = int(store.lengths.sum()), len(textbook.vocabulary_of(corpus.train.read_text().splitlines()))
        if found != corpus.tokens:
            raise AssertionError(f"{found} tokens of {corpus.tokens}")
        return f"{found:,} tokens each; {len(tokenizer):,} ids and {words:,} words"

    def ours() -> Run:
        return after(corpus.encoded, corpus.done)

    def theirs() -> Run:
        return after(lambda: rows(corpus.train), corpus.done)

    return Case("tokens", ours, theirs, check)


def loading(options: Options) -> Case:
    """The batches of an epoch, from ids that are there."""
    corpus = _Corpus(options)

    def ours() -> Run:
        batches = corpus.batches()
        return after(lambda: sum(1 for _ in batches.epoch(0)), corpus.done)

    def theirs() -> Run:
        batches = rows(corpus.train)
        return after(lambda: sum(1 for _ in batches), corpus.done)

    def check() -> str:
        other = sum(int(batch.lengths.sum()) for batch in rows(corpus.train))
        mine = sum(int(piece.batch.lengths.sum()) for step in corpus.batches().epoch(0) for piece in step.pieces)
        if not mine == other == corpus.tokens:
            raise AssertionError(f"{mine} and {other} tokens of {corpus.tokens}")
        return f"{mine:,} tokens each"

    return Case("tokens", ours, theirs, check)


def start_help(options: Options) -> Case:
    """Until the shell has said what it can."""
    return _start(["textvae", "--help"], None)


def start_training(options: Options) -> Case:
    """A training of one step, from the shell: corpus, vocabulary and model made, a checkpoint written."""
    return _start(
        ["textvae", "train", "recipe.yaml", "--out", "run", "--quiet"],
        ["tests.benchmarks.textbook_training", "train.txt"],
        options,
    )


def _start(mine: list[str], other: list[str] | None, options: Options | None = None) -> Case:
    def started(arguments: list[str], *before: str) -> str:
        """What `python -m before arguments` prints, in a folder of its own."""
        if options is None:
            return _output([*before, *arguments], ROOT)
        corpus = _Corpus(options)
        steps = corpus.recipe.training.model_copy(update={"max_steps": 1})
        (corpus.folder / "recipe.yaml").write_text(dump(corpus.recipe.model_copy(update={"training": steps})))
        return _output([*before, *arguments], corpus.folder)

    done = Done(1, 1)
    return Case(
        "starts",
        lambda: after(lambda: started(mine), done),
        None if other is None else lambda: after(lambda: started(other), done),
        peak=lambda side: float(started(mine if side == "ours" else other or mine, "tests.benchmarks.peak")),
    )


def _output(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout
