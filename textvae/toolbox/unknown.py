"""Words that a run's vocabulary lacks, and reads as <unk>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textvae.api import TextVAE
    from textvae.types import Tokenizer


def unknown_words(vae: TextVAE, texts: Sequence[str]) -> list[str]:
    """Returns the words of texts that the vocabulary lacks, each once, in the order in which they come.

    Of a text that is read by character, the characters; a vocabulary of bytes lacks none.
    """
    tokenizer, found = vae.tokenizer, dict[str, None]()
    for text, ids in zip(texts, vae.ids(texts)):
        if tokenizer.unk_id in ids:
            words = list(text) if len(ids) == len(text) + 2 else text.split()  # <s> and </s> beside each character
            found |= {word: None for word, own in zip(words, vae.ids(words)) if tokenizer.unk_id in own}
    return list(found)


def pieces(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[str]:
    """Returns what each id stands for in a text: its own word with a mark, as zebra(<unk>), where it is unknown.

    Args:
        tokenizer: the one that read the text.
        text: as it was written.
        ids: of its tokens, without <s> and </s>.
    """
    names = tokenizer.decode([[i] for i in ids])
    for parts in (text.split(), list(text)):
        known = (name == part for name, part, i in zip(names, parts, ids) if i != tokenizer.unk_id)
        if len(parts) == len(ids) and all(known):
            return [f"{part}({name})" if i == tokenizer.unk_id else name for name, part, i in zip(names, parts, ids)]
    return names  # of other pieces none tells where in the text it stood
