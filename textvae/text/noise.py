"""Noise on token ids: modules that act in training and stand aside under `.eval()`.

WordDropout is for the decoder's inputs. The others are for what the encoder reads, of which the decoder
rebuilds the clean sentence (denoising; Shen 2020, arXiv 1905.12777). There a word is a token
that is neither <s> nor </s> nor <pad>. All draw from torch's global random state, as dropout does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.errors import UserError
from textvae.registry import Registry
from textvae.types import Batch

Share = Annotated[float, Field(ge=0, le=1)]


class Vocabulary(NamedTuple):
    """What noise must know of a tokenizer."""

    size: int  # V, special tokens counted
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int | None


class WordDropout(nn.Module):
    """Replaces a share of the decoder's input words by <unk>, so that it must ask z (Bowman 2016, section 3.1).

    <s> stays, targets are never touched, and nothing happens in evaluation.

    Args:
        rate: the share of words replaced.
        unk_id: what stands in their place.
    """

    def __init__(self, rate: float, unk_id: int) -> None:
        super().__init__()
        self.rate = rate
        self.unk_id = unk_id

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns decoder inputs (B, T) with words dropped; column 0 holds <s>."""
        if not self.training or self.rate == 0:
            return inputs
        dropped = torch.rand(inputs.shape, device=inputs.device) < self.rate
        dropped[:, 0] = False
        return inputs.masked_fill(dropped, self.unk_id)


class Delete(nn.Module):
    """Deletes a share of the words; the rest moves up (Shen 2020, arXiv 1905.12777).

    Args:
        vocabulary: the tokenizer's.
        rate: the chance of each word to be deleted, 0.3 in the published DAAE; a sentence that loses all words
            keeps <s> and </s>.
    """

    def __init__(self, vocabulary: Vocabulary, *, rate: Share = 0.3) -> None:
        super().__init__()
        self.pad_id = vocabulary.pad_id
        self.rate = rate

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with words deleted: tokens (B, T+1) as wide as before, lengths (B,) shorter."""
        if not self.training or self.rate == 0:
            return batch
        deleted = _chosen(batch, self.rate)  # (B, T+1)
        # What is deleted goes behind the end, where padding takes its place.
        order = deleted.to(torch.uint8).argsort(dim=1, stable=True)
        lengths = batch.lengths - deleted.sum(1)
        behind = _columns(batch) > lengths[:, None]
        return Batch(batch.tokens.gather(1, order).masked_fill(behind, self.pad_id), lengths)


class Blank(nn.Module):
    """Puts <unk> in the place of a share of the words (Shen 2020, arXiv 1905.12777).

    Args:
        vocabulary: the tokenizer's; it must have <unk>.
        rate: the chance of each word to be blanked.
    """

    def __init__(self, vocabulary: Vocabulary, *, rate: Share = 0.3) -> None:
        super().__init__()
        if vocabulary.unk_id is None:
            raise UserError("blank puts <unk> in the place of words, which this tokenizer does not have; use delete")
        self.unk_id = vocabulary.unk_id
        self.rate = rate

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with words blanked: tokens (B, T+1), lengths (B,) as they were."""
        if not self.training or self.rate == 0:
            return batch
        return Batch(batch.tokens.masked_fill(_chosen(batch, self.rate), self.unk_id), batch.lengths)


class Substitute(nn.Module):
    """Puts random words in the place of a share of the words (Shen 2020, arXiv 1905.12777).

    Args:
        vocabulary: the tokenizer's. Drawn are all ids but the special ones, each as likely, the word's own too.
        rate: the chance of each word to be substituted.
    """

    ordinary: Tensor  # (V - special tokens,), int64

    def __init__(self, vocabulary: Vocabulary, *, rate: Share = 0.3) -> None:
        super().__init__()
        special = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id}
        ordinary = [token for token in range(vocabulary.size) if token not in special]
        if not ordinary:
            raise UserError("substitute has no words to draw from: the vocabulary holds only special tokens")
        # Made from the tokenizer, so not worth saving, but it must follow the model to its device.
        self.register_buffer("ordinary", torch.tensor(ordinary), persistent=False)
        self.rate = rate

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with words substituted: tokens (B, T+1), lengths (B,) as they were."""
        if not self.training or self.rate == 0:
            return batch
        drawn = torch.randint(len(self.ordinary), batch.tokens.shape, device=batch.tokens.device)
        return Batch(torch.where(_chosen(batch, self.rate), self.ordinary[drawn], batch.tokens), batch.lengths)


class Shuffle(nn.Module):
    """Moves each word by at most `distance` places (Lample 2018, arXiv 1711.00043, section 2.3).

    The words are sorted by i + U(0, distance + 1), with i their place.

    Args:
        vocabulary: the tokenizer's.
        distance: k, the places a word may move.
    """

    def __init__(self, vocabulary: Vocabulary, *, distance: Annotated[int, Field(ge=0)] = 3) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with words moved: tokens (B, T+1), lengths (B,) as they were."""
        if not self.training or self.distance == 0:
            return batch
        columns = _columns(batch)
        reach = float(self.distance + 1)
        offset = torch.rand(batch.tokens.shape, device=batch.tokens.device) * reach
        # <s> sorts before every word, </s> and padding after; among equals the order stays (rounding).
        offset = offset.masked_fill(columns < 1, 0.0).masked_fill(columns >= batch.lengths[:, None], reach)
        return Batch(batch.tokens.gather(1, (columns + offset).argsort(dim=1, stable=True)), batch.lengths)


class Chain(nn.Module):
    """Several kinds of noise, one after the other.

    Args:
        noises: modules from Batch to Batch, in order.
    """

    def __init__(self, noises: Iterable[nn.Module]) -> None:
        super().__init__()
        self.noises = nn.ModuleList(noises)

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch after all of them."""
        for noise in self.noises:
            batch = noise(batch)
        return batch


def _columns(batch: Batch) -> Tensor:
    """(1, T+1): 0 is <s>, `lengths` is </s>."""
    return torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]


def _chosen(batch: Batch, rate: float) -> Tensor:
    """(B, T+1) bool: a random share of the words, never <s>, </s> or padding."""
    columns = _columns(batch)
    words = (columns >= 1) & (columns < batch.lengths[:, None])
    return words & (torch.rand(batch.tokens.shape, device=batch.tokens.device) < rate)


NOISES = Registry("noise", {"delete": Delete, "blank": Blank, "substitute": Substitute, "shuffle": Shuffle})
