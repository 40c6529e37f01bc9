"""Shared by all tests: a cache of their own, no network, small corpora, the real ones where they lie."""

import os
import tempfile
from pathlib import Path

# Before datasets is imported anywhere: it reads these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="textvae-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import atexit
import random
import shutil
import signal
import threading
from collections.abc import Callable

import pytest
import torch

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
torch.set_num_threads(1)
# What a shell puts in the background has SIGINT ignored, and the programs that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Returns a function from a name under shared/data to its path; it skips where the corpus is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"the corpus {name} is not on this machine (shared/data beside the repository)")
        return SHARED / name

    return find


def sentences(count: int, seed: int = 0) -> list[str]:
    """Small made-up sentences with some structure and uneven lengths."""
    draw = random.Random(seed)
    nouns, verbs, places = ["cat", "dog", "bird", "child"], ["sees", "hears", "wants"], ["here", "there", "at home"]
    result = []
    for _ in range(count):
        words = ["the", draw.choice(nouns), draw.choice(verbs), "the", draw.choice(nouns)]
        words += draw.choice([[], draw.choice(places).split(), ["and", "the", draw.choice(nouns)]])
        result.append(" ".join(words))
    return result


@pytest.fixture
def corpus_files(tmp_path: Path) -> dict[str, str]:
    """Three small text files: train, validation, test."""
    files = {}
    for seed, (part, count) in enumerate({"train": 200, "validation": 40, "test": 30}.items()):
        path = tmp_path / f"{part}.txt"
        path.write_text("".join(line + "\n" for line in sentences(count, seed)), encoding="utf-8")
        files[part] = str(path)
    return files


@pytest.fixture
def values(corpus_files: dict[str, str]) -> dict:
    """A small experiment as plain values, for Recipe.model_validate; no dropout, so that rounding is all."""
    return {
        "data": {"files": corpus_files},
        "model": {
            "latent_dim": 4,
            "embedding_dim": 8,
            "encoder": {"cell": "gru", "hidden_dim": 12, "bidirectional": True},
            "decoder": {"cell": "lstm", "hidden_dim": 12, "layers": 2},
        },
        "objective": {"kl": {"kind": "kl", "weight": {"kind": "linear", "over": 20}}},
        "training": {
            "batch_size": 16,
            "max_steps": 30,
            "evaluate_every": 10,
            "log_every": 5,
            "optimizer": {"kind": "adamw", "lr": 0.01},
            "threads": 1,
        },
        "evaluation": {"iw_samples": 10},
    }


def has_rows(run: Path) -> bool:
    """Whether a training has written its first row: all of its processes listen to signals by then."""
    rows = run / "metrics.jsonl"
    return rows.exists() and rows.stat().st_size > 0


def tiny_model(**changes: object) -> dict:
    """The model section of a run that is there in a second and knows nothing."""
    sizes = {"embedding_dim": 8, "encoder": {"hidden_dim": 8}, "decoder": {"hidden_dim": 8}}
    return {"latent_dim": 4, **sizes, **changes}


def train_on_grammar(folder: Path, steps: int = 500) -> Path:
    """A small run on the built-in corpus that uses its latents; returns its folder."""
    from textvae.recipe import Recipe
    from textvae.training import train

    values = {
        "data": {"grammar": {"seed": 0, "train": 4000, "validation": 100, "test": 200}},
        "model": {
            "latent_dim": 8,
            "embedding_dim": 32,
            "encoder": {"cell": "gru", "hidden_dim": 48, "bidirectional": True},
            "decoder": {"cell": "gru", "hidden_dim": 64},
        },
        "objective": {"kl": {"kind": "kl", "weight": 0.2}, "bag": {"kind": "bag_of_words", "weight": 1.0}},
        "training": {
            "batch_size": 32,
            "max_steps": steps,
            "evaluate_every": steps,
            "optimizer": {"kind": "adamw", "lr": 0.01},
            "threads": 1,
        },
        "evaluation": {"iw_samples": 2},
        "generation": {"max_length": 25},
    }
    return train(Recipe.model_validate(values), folder, quiet=True)
