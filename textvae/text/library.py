"""What is asked of the `tokenizers` library: vocabularies by frequency, byte-level models, each time the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from textvae.errors import TokenizerError
from textvae.text.codecs import SPECIALS, UNK

LONGEST_PIECE = 2000  # characters of a text that a trainer of subwords sees at once
PIECE = re.compile(rf".{{1,{LONGEST_PIECE}}}(?=\s|\Z)|\S{{1,256}}|.", re.DOTALL)  # at white space, if there is any


def vocabulary(
    texts: Iterable[str], split: Callable[[str], Iterable[str]], size: int | None, min_frequency: int
) -> Any:
    """Returns a word-level model of the most frequent units, ties in the order of their code points.

    Args:
        texts: the corpus.
        split: a text to its units.
        size: units at most, special tokens counted; all where None.
        min_frequency: how often a unit must stand in the corpus.

    Raises:
        TokenizerError: no unit is left.
    """
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
    frequent = [unit for unit, count in counts.items() if count >= min_frequency and unit not in SPECIALS]
    if not frequent:
        raise TokenizerError(
            f"tokenizer: none of the corpus's {len(counts)} different units stands in it {min_frequency} times "
            "(tokenizer.min_frequency)"
        )
    frequent.sort(key=lambda unit: (-counts[unit], unit))
    units = [*SPECIALS, *frequent][:size]
    tokenizer = LibraryTokenizer(models.WordLevel({unit: i for i, unit in enumerate(units)}, unk_token=UNK))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def byte_level(model: Any) -> Any:
    """Returns a tokenizer over the bytes of a text's words, numbers and signs."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, pre_tokenizers

    tokenizer = LibraryTokenizer(model)
    # Its pattern parts letters from signs, so that no piece can ever be spelled as "</s>" is.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level_options(vocab_size: int) -> dict[str, Any]:
    """Returns what BPE's and unigram's trainers have in common."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {
        "vocab_size": vocab_size,
        "special_tokens": list(SPECIALS),
        "initial_alphabet": alphabet,
        "show_progress": False,
    }


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts, long ones in pieces: trainers take time that grows with the square of an unbroken one."""
    for text in texts:
        yield from (text,) if len(text) <= LONGEST_PIECE else PIECE.findall(text)


def repeatable(tokenizer: Any) -> Any:
    """Returns the same unigram model whatever order the trainer's hash tables had.

    Bytes that were not learned get scores a little above the lowest, in the order of a hash table; here
    they all get the lowest. Sums that differ in their last digits are rounded, equal scores sorted by piece.
    """
    state = json.loads(tokenizer.to_str())
    specials, pieces = state["model"]["vocab"][: len(SPECIALS)], state["model"]["vocab"][len(SPECIALS) :]
    lowest = min(score for _, score in pieces)
    not_learned = lowest + 257e-4  # the trainer goes up by 1e-4 a byte
    scored = [
        (piece, round(lowest if len(piece) == 1 and score < not_learned else score, 6)) for piece, score in pieces
    ]
    state["model"]["vocab"] = specials + sorted(scored, key=lambda item: (-item[1], item[0]))
    return type(tokenizer).from_str(json.dumps(state))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Holds the tokenizers library to one thread, so that its sums have one order."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
