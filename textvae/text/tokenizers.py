"""Tokenizers: trained here (word, BPE, unigram, character, byte, SentencePiece) or brought along in a file.

A class of `TOKENIZERS` is a recipe's wish; its `fit` gives the `TextTokenizer` that the rest works with.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from textvae.errors import TokenizerError, UserError, suggest
from textvae.registry import Registry
from textvae.text.codecs import (
    BOS,
    CONFIG,
    EOS,
    MARK,
    PAD,
    SPECIALS,
    TRAINED_IDS,
    UNK,
    WHITE_SPACE,
    ByteCodec,
    Codec,
    LibraryCodec,
    SentencePieceCodec,
    TextTokenizer,
    read,
)
from textvae.text.growth import is_panic
from textvae.text.library import byte_level, byte_level_options, cut, one_thread, repeatable, vocabulary
from textvae.types import Tokenizer

SPELLINGS = {
    "pad": (PAD, "[PAD]", "<|pad|>", "<|padding|>", "<PAD>"),
    "bos": (BOS, "[CLS]", "[BOS]", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "<BOS>"),
    "eos": (EOS, "[SEP]", "[EOS]", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<EOS>"),
    "unk": (UNK, "[UNK]", "<|unk|>", "<UNK>"),
}
VocabularySize = Annotated[int, Field(gt=len(SPECIALS))]
ByteVocabularySize = Annotated[int, Field(ge=len(SPECIALS) + 256)]
Frequency = Annotated[int, Field(gt=0)]


def train(section: Mapping[str, Any], texts: Iterable[str], *, trust_code: bool = True) -> Tokenizer:
    """Returns the tokenizer that a recipe's section describes, trained on `texts` where it needs training.

    Raises:
        UserError: an unknown kind or option.
        TokenizerError: texts it cannot be trained on, or a file it cannot be read from.
    """
    wanted = TOKENIZERS.build(section, path="tokenizer", trust_code=trust_code)
    fitted = wanted.fit(texts) if hasattr(wanted, "fit") else None
    if not isinstance(fitted, Tokenizer):
        raise UserError(f"tokenizer.kind: {section.get('kind')} has no fit(texts) that gives a tokenizer")
    return fitted


def load(folder: str, *, kind: str | None = None, trust_code: bool = False) -> Tokenizer:
    """Returns the tokenizer that `save` wrote into a folder; reads data only, runs nothing.

    Args:
        folder: where `save` wrote.
        kind: the recipe's kind; needed for a user's own class alone, whose classmethod `load(folder)` is called.
        trust_code: whether a user's own class may be imported.

    Raises:
        TokenizerError: names the file that is missing or damaged.
    """
    if kind is not None and "." in kind:
        own: Tokenizer = TOKENIZERS.resolve(kind, trust_code=trust_code).load(folder)  # type: ignore[attr-defined]
        return own
    path = Path(folder) / CONFIG
    try:
        config = json.loads(read(path))
        ids = {name: config["special_ids"][name] for name in SPELLINGS}
        model, kind, digest = config["model"], config["kind"], config.get("sha256")
    except TokenizerError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"{path}: is damaged: {error!r}") from error
    if any(type(i) is not int or i < 0 for i in ids.values()) or len(set(ids.values())) < len(ids):
        raise TokenizerError(f"{path}: is damaged: special_ids are {ids}")
    if model is None:
        return TextTokenizer(ByteCodec(len(SPECIALS)), kind=kind, ids=ids)
    if model not in (LibraryCodec.file, SentencePieceCodec.file):
        raise TokenizerError(f"{path}: is damaged: model is {model!r}")
    return TextTokenizer(_read_codec(path.with_name(model), exact=kind != "file", digest=digest), kind=kind, ids=ids)


class Word:
    """Words as `str.split()` finds them; a text comes back with one space between words.

    Args:
        vocab_size: the most frequent words kept, special tokens counted; all where absent.
        min_frequency: how often a word must stand in the corpus to be kept.
    """

    def __init__(self, *, vocab_size: VocabularySize | None = None, min_frequency: Frequency = 1) -> None:
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Counts the words of `texts`."""
        from tokenizers import Regex, pre_tokenizers

        tokenizer = vocabulary(texts, str.split, self.vocab_size, self.min_frequency)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WHITE_SPACE), "removed")
        return TextTokenizer(LibraryCodec(tokenizer), kind="word", ids=TRAINED_IDS)


class Character:
    """Unicode code points; exact for text of known characters.

    Args:
        vocab_size: the most frequent characters kept, special tokens counted; all where absent.
        min_frequency: how often a character must stand in the corpus to be kept.
    """

    def __init__(self, *, vocab_size: VocabularySize | None = None, min_frequency: Frequency = 1) -> None:
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Counts the characters of `texts`."""
        from tokenizers import Regex, decoders, pre_tokenizers

        tokenizer = vocabulary(texts, iter, self.vocab_size, self.min_frequency)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return TextTokenizer(LibraryCodec(tokenizer), kind="character", ids=TRAINED_IDS)


class Byte:
    """The 256 bytes of UTF-8; exact for any string, nothing to train."""

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Returns the tokenizer; `texts` stay unread."""
        return TextTokenizer(ByteCodec(len(SPECIALS)), kind="byte", ids=TRAINED_IDS)


class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909); exact for any text.

    Args:
        vocab_size: tokens at most, special tokens and 256 bytes counted.
        min_frequency: how often a pair must stand in the corpus to be joined.
    """

    def __init__(self, *, vocab_size: ByteVocabularySize = 8_000, min_frequency: Frequency = 2) -> None:
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Learns the merges from `texts`."""
        from tokenizers import models, trainers

        trainer = trainers.BpeTrainer(min_frequency=self.min_frequency, **byte_level_options(self.vocab_size))
        tokenizer = byte_level(models.BPE())
        tokenizer.train_from_iterator(cut(_some(texts)), trainer)
        return TextTokenizer(LibraryCodec(tokenizer), kind="bpe", ids=TRAINED_IDS)


class Unigram:
    """Byte-level unigram pieces (Kudo 2018, arXiv:1804.10959); exact for any text.

    Args:
        vocab_size: tokens at most, special tokens and 256 bytes counted.
    """

    def __init__(self, *, vocab_size: ByteVocabularySize = 8_000) -> None:
        self.vocab_size = vocab_size

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Learns the pieces from `texts`."""
        from tokenizers import models, trainers

        trainer = trainers.UnigramTrainer(unk_token=UNK, **byte_level_options(self.vocab_size))
        tokenizer = byte_level(models.Unigram())
        with one_thread():
            tokenizer.train_from_iterator(cut(_some(texts)), trainer)
        return TextTokenizer(LibraryCodec(repeatable(tokenizer)), kind="unigram", ids=TRAINED_IDS)


class SentencePiece:
    """SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) on the text as it is, every space kept.

    Args:
        model_type: how the pieces are learned.
        vocab_size: pieces at most, special tokens (and 256 bytes) counted.
        character_coverage: share of the corpus's characters that get a piece of their own.
        byte_fallback: other characters become their bytes and the round trip is exact; without it, <unk>.
    """

    def __init__(
        self,
        *,
        model_type: Literal["unigram", "bpe"] = "unigram",
        vocab_size: VocabularySize = 8_000,
        character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0,
        byte_fallback: bool = True,
    ) -> None:
        self.model_type = model_type
        self.vocab_size = vocab_size
        self.character_coverage = character_coverage
        self.byte_fallback = byte_fallback

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Learns the pieces from `texts`."""
        import sentencepiece

        # SentencePiece keeps these characters for itself and leaves out whole sentences that hold one.
        reserved = re.compile(f"[\t\n\0\u2585{MARK}]+")
        pieces = (piece for text in texts for piece in reserved.split(text) if piece)
        model = io.BytesIO()
        special: dict[str, Any] = {f"{name}_id": i for name, i in TRAINED_IDS.items()}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=cut(_some(pieces)),
                model_writer=model,
                model_type=self.model_type,
                vocab_size=self.vocab_size,
                hard_vocab_limit=False,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                max_sentence_length=2**30,
                unk_surface=UNK,
                minloglevel=2,
                **special,
            )
        except RuntimeError as error:
            raise TokenizerError(self._problem(str(error))) from error
        codec = SentencePieceCodec(model.getvalue(), exact=True)
        return TextTokenizer(codec, kind="sentencepiece", ids=TRAINED_IDS)

    def _problem(self, message: str) -> str:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
        if needed is None:
            return f"tokenizer: SentencePiece cannot be trained on this corpus: {message}"
        return (
            f"tokenizer.vocab_size: got {self.vocab_size}; the corpus's characters alone need {needed[1]}. "
            "Raise it, or lower tokenizer.character_coverage (0.9995 leaves the rarest to their bytes)"
        )


class File:
    """A tokenizer that exists: a tokenizer.json of the tokenizers library, or a SentencePiece .model.

    Special tokens are found by their usual spellings; one that is missing is added behind the vocabulary.

    Args:
        path: the file.
        pad: the spelling of the padding token in it, where it is an unusual one.
        bos: the same for the token that opens a sentence.
        eos: the same for the token that closes one.
        unk: the same for the unknown token.
    """

    def __init__(
        self,
        *,
        path: str,
        pad: str | None = None,
        bos: str | None = None,
        eos: str | None = None,
        unk: str | None = None,
    ) -> None:
        self.path = path
        self.given = {"pad": pad, "bos": bos, "eos": eos, "unk": unk}

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Reads the file; `texts` stay unread."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise TokenizerError(f"tokenizer.path: {path} is no file; name a tokenizer.json or a SentencePiece .model")
        codec = _read_codec(path, exact=False)
        return TextTokenizer(codec, kind="file", ids=self._special_ids(codec.names(), codec.size))

    def _special_ids(self, names: Mapping[str, int], size: int) -> dict[str, int]:
        ids: dict[str, int] = {}
        for role, name in self.given.items():
            if name is None:
                continue
            if name not in names:
                near = [known for known in names if len(known) > 2 and known[0] in "<[" and not known.startswith("<0x")]
                raise TokenizerError(f"tokenizer.{role}: {self.path} has no token {name!r}{suggest(name, near)}")
            if names[name] in ids.values():
                raise TokenizerError(f"tokenizer.{role}: {name!r} already has another role; each needs its own token")
            ids[role] = names[name]
        for role, spellings in SPELLINGS.items():
            if role not in ids:
                free = (names[name] for name in spellings if name in names and names[name] not in ids.values())
                ids[role] = next(free, size)
                size += ids[role] == size
        return ids


def _read_codec(path: Path, *, exact: bool, digest: str | None = None) -> Codec:
    content = read(path)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise TokenizerError(f"{path}: does not match its checksum in {CONFIG}; the file is damaged")
    try:
        if path.suffix == ".json":
            return LibraryCodec.from_bytes(content)
        codec = SentencePieceCodec(content, exact=exact)
        if codec.size == 0:
            raise ValueError("it holds no piece")
        return codec
    except BaseException as error:  # the tokenizers library raises bare Exception
        if not is_panic(error):
            raise
        known = "tokenizer.json" if path.suffix == ".json" else "SentencePiece .model"
        raise TokenizerError(f"{path}: is damaged or no {known}: {error}") from error


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts again, once it is sure that there is one."""
    iterator = iter(texts)
    for first in iterator:
        return itertools.chain((first,), iterator)
    raise TokenizerError("tokenizer: the corpus holds no text to train on")


TOKENIZERS = Registry(
    "tokenizer",
    {
        "word": Word,
        "bpe": BPE,
        "unigram": Unigram,
        "character": Character,
        "byte": Byte,
        "sentencepiece": SentencePiece,
        "file": File,
    },
    default="word",
)
