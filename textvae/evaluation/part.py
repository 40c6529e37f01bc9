"""The part of a corpus that a run is evaluated on: its sentences as text and as ids, and what is not among them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from textvae.errors import UserError, suggest
from textvae.recipe import Recipe
from textvae.text import corpora, encoding
from textvae.text.batching import TokenStore, evaluation_batches
from textvae.text.codecs import UNK
from textvae.types import Batch

BY_CHARACTER = ("character", "byte")  # tokenizers without words
CANDIDATES = 1_000  # sentences searched for a word that the vocabulary knows


@dataclass
class Part:
    """A run in the hand and the part of a corpus that it is evaluated on.

    Attributes:
        vae: a TextVAE.
        recipe: gives the corpus and the evaluation's settings.
        seed: of all draws.
        split: train, validation or test.
        corpus: the sentences.
        encoded: their ids, part by part.
        dropped: reason -> sentences of the split that are not evaluated ("truncated" ones are, shortened).
    """

    vae: Any
    recipe: Recipe
    seed: int
    split: str
    corpus: corpora.Corpus
    encoded: dict[str, Any]
    dropped: dict[str, int]

    @cached_property
    def store(self) -> TokenStore:
        """The ids of the sentences that are evaluated."""
        return TokenStore(self.encoded[self.split])

    @property
    def kind(self) -> str:
        """Of tokenizer."""
        return str(self.vae.recipe.tokenizer.kind)

    @property
    def tokens(self) -> Callable[[str], list[str]]:
        """text -> what is counted as a word of it: characters, where the tokenizer has no words."""
        return list if self.kind in BY_CHARACTER else str.split

    @cached_property
    def references(self) -> list[str]:
        """The first sentences as the run reads them, to be reconstructed."""
        return self.texts(self.split, self.recipe.evaluation.bleu_sentences)

    def batches(self) -> Iterator[Batch]:
        """Yields the sentences in batches of like length on the model's device."""
        return (self.vae.on_device(batch) for _, batch in evaluation_batches(self.store, self.vae.tokenizer.pad_id))

    def texts(self, part: str, at_most: int | None = None) -> list[str]:
        """The first sentences of a part as the run reads them: the same that its likelihoods are of."""
        rows: Iterable[Any] = itertools.islice(self.encoded[part], at_most)
        texts: list[str] = self.vae.tokenizer.decode([list(row["tokens"]) for row in rows])
        return texts

    @cached_property
    def _corpus_texts(self) -> list[str]:
        rows: Iterable[Any] = self.corpus.parts[self.split]  # type: ignore[index]
        return [str(row["text"]) for row in rows]

    @cached_property
    def own_texts(self) -> list[str]:
        """The sentences that are evaluated as the corpus has them, in its order; of a shortened one what is left.

        No tokenizer is in between: words that the vocabulary lacks stand there too.
        """
        texts, longest = self._corpus_texts, self.recipe.data.max_length
        if longest is None:
            return texts
        own, tokenizer = [], self.vae.tokenizer
        for text, ids in zip(texts, tokenizer.encode(texts)):
            if len(ids) - 1 <= longest:
                own.append(text)
            elif self.recipe.data.too_long == "truncate":
                own += tokenizer.decode([ids[:longest]])
        return own

    def unknown_share(self) -> float:
        """The share of the target tokens that stand for words which the vocabulary lacks.

        A text's own "<unk>" (Penn Treebank's) is a word like others, and not counted.
        """
        tokenizer, store = self.vae.tokenizer, self.store
        if tokenizer.unk_id is None:
            return 0.0
        unknown = sum(int((np.asarray(store[row]) == tokenizer.unk_id).sum()) for row in range(len(store)))
        return (unknown - self._spelt_unknown() if unknown else 0) / int(store.lengths.sum())

    def _spelt_unknown(self) -> int:
        """How many of the tokens that count as unknown are a word of the text's own, "<unk>".

        A known word is put in its place: what is unknown besides stays so, in shortened sentences too.
        """
        tokenizer, longest = self.vae.tokenizer, self.recipe.data.max_length
        unk, texts = tokenizer.unk_id, self._corpus_texts
        spelt = tokenizer.decode([[unk]])[0].strip() or UNK
        alone = tokenizer.encode([spelt])[0][1:-1]
        with_it = [text for text in texts if spelt in text.split()]
        if len(alone) > 2 or alone.count(unk) != 1 or not with_it:
            return 0  # such a tokenizer reads it letter by letter, or no text has it
        words = list(dict.fromkeys(word for text in texts[:CANDIDATES] for word in text.split()))
        pieces = (ids[1:-1] for ids in tokenizer.encode(words))
        known = next((w for w, found in zip(words, pieces) if len(found) == len(alone) and unk not in found), None)
        if known is None:
            return 0
        replaced = [re.sub(rf"(?<!\S){re.escape(spelt)}(?!\S)", lambda _: known, text) for text in with_it]
        return sum(
            ids[:longest].count(unk) - others[:longest].count(unk)
            for ids, others in zip(tokenizer.encode(with_it), tokenizer.encode(replaced))
            if longest is None or len(ids) - 1 <= longest or self.recipe.data.too_long == "truncate"
        )


def opened(vae: Any, split: str, recipe: Recipe, seed: int) -> Part:
    """Reads and encodes the corpus of a recipe.

    Raises:
        UserError: the corpus has no such part, it cannot be read, or no sentence is in it.
    """
    corpus = corpora.load(recipe.data)
    encoded = encoding.encode(corpus, vae.tokenizer, recipe.data)
    parts: dict[str, Any] = {str(name): rows for name, rows in encoded.parts.items()}
    if split not in parts:
        raise UserError(f"split: the corpus has no part {split!r}{suggest(split, parts)}")
    if split == "train" and corpus.streaming:
        data, besides = recipe.data, ""
        for name, off in (("stream_workers", 0), ("stream_shares", False)):
            if getattr(data, name):
                besides += f" data.{name}={str(off).lower()}"
        raise UserError(f"split: train is streamed, and figures are of what is held; add data.streaming=false{besides}")
    part = Part(vae, recipe, seed, split, corpus, parts, dict(encoded.dropped.get(split, {})))
    if not len(part.store):
        raise UserError(f"split: the part {split!r} has no sentence")
    return part


def spaced(texts: Sequence[str], kind: str) -> list[str]:
    """Returns the texts with spaces between what counts as a word: characters, where the tokenizer has no words."""
    if kind not in BY_CHARACTER:
        return list(texts)
    return [" ".join(text.replace(" ", "\u2581")) for text in texts]
