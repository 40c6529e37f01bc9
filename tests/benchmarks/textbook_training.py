"""The textbook's step of training; run as a program, its first step from a text file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.benchmarks.sizes import SMALL, Sizes
from tests.benchmarks.textbook import Textbook, loader, vocabulary_of
from textvae.types import Batch

BATCH = 32
CLIP = 5.0
RATE = {"sgd": 1.0, "adam": 1e-3, "adamw": 1e-3}


def textbook_model(sizes: Sizes) -> Textbook:
    torch.manual_seed(0)
    return Textbook(sizes)


def textbook_trainer(
    sizes: Sizes, optimizer: str, device: torch.device, precision: str = "fp32"
) -> Callable[[Batch], None]:
    """Returns a function from a batch to one step as most repositories write it."""
    model = textbook_model(sizes).to(device).train()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    taken = kinds[optimizer](model.parameters(), lr=RATE[optimizer])

    def step(batch: Batch) -> None:
        batch = Batch(*(tensor.to(device) for tensor in batch))
        taken.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model.loss(batch, torch.randn(len(batch.lengths), sizes.latent, device=device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        taken.step()
        loss.item()  # for the progress bar

    return step


def rows(path: Path) -> DataLoader:
    """Returns the batches of a text file, the vocabulary made on the way."""
    texts = path.read_text(encoding="utf-8").splitlines()
    return loader(texts, vocabulary_of(texts), BATCH)


if __name__ == "__main__":
    textbook_trainer(SMALL, "sgd", torch.device("cpu"))(next(iter(rows(Path(sys.argv[1])))))
