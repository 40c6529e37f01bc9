"""Text to ids and back: codecs for plain text, and the tokenizer that puts <s> and </s> around their ids."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from textvae.errors import TokenizerError
from textvae.recipe import LARGEST_OF
from textvae.text.growth import check_growth, is_panic

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)
TRAINED_IDS = {"pad": 0, "bos": 1, "eos": 2, "unk": 3}  # in every tokenizer that is trained here
CONFIG = "tokenizer_config.json"
LARGEST_BYTES = 2**28
# The white space of str.split(), which Unicode's own property (and the library's splitter) lacks 1C to 1F of.
WHITE_SPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
MARK = "\u2581"  # what SentencePiece writes for a space, and gives back as one


class Codec(Protocol):
    """Ids from 0 to `size` - 1; whatever text goes in, none of it is read as a special token's name."""

    file: ClassVar[str | None]  # its file in a tokenizer's folder; None where there is nothing to keep

    @property
    def size(self) -> int:
        """The number of ids it knows."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        ...

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids."""
        ...

    def names(self) -> dict[str, int]:
        """Returns token -> id."""
        ...

    def to_bytes(self) -> bytes:
        """Returns what its file holds."""
        ...


class TextTokenizer:
    """A tokenizer ready for use: a codec's ids between <s> and </s>.

    Text that spells a special token ("</s>") stays plain text: it never becomes that token's id.

    Args:
        codec: plain text to ids and back.
        kind: its kind in a recipe.
        ids: the ids of "pad", "bos", "eos" and "unk".
    """

    def __init__(self, codec: Codec, *, kind: str, ids: Mapping[str, int]) -> None:
        self.codec = codec
        self.kind = kind
        self.pad_id, self.bos_id, self.eos_id = ids["pad"], ids["bos"], ids["eos"]
        self.unk_id: int | None = ids["unk"]
        self._unknown = ids["unk"]
        self._special = frozenset((self.pad_id, self.bos_id, self.eos_id))
        self._codec_size = codec.size
        self._size = max(self._codec_size, max(ids.values()) + 1)
        largest = LARGEST_OF["vocab_size"]
        if self._size > largest:
            raise TokenizerError(f"tokenizer: has ids up to {self._size - 1:,}; a vocabulary is at most {largest:,}")

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"TextTokenizer(kind={self.kind!r}, size={len(self)})"

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, <s> first and </s> last.

        Raises:
            TokenizerError: a string that is no text (half of a surrogate pair).
        """
        try:
            rows = self.codec.encode(texts)
        except (TypeError, UnicodeEncodeError):
            for number, text in enumerate(texts, start=1):
                _require_unicode(text, number)
            raise
        return [[self.bos_id, *self._plain(row), self.eos_id] for row in rows]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids; stops at </s>, drops <s>, <pad> and ids without text."""
        rows = []
        for row in ids:
            body = row[: row.index(self.eos_id)] if self.eos_id in row else row
            rows.append([i for i in body if i not in self._special and i < self._codec_size])
        return self.codec.decode(rows)

    def save(self, folder: str) -> None:
        """Writes tokenizer_config.json and the codec's file."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        content = self.codec.to_bytes()
        if self.codec.file is not None:
            _write(place / self.codec.file, content)
        ids = {"pad": self.pad_id, "bos": self.bos_id, "eos": self.eos_id, "unk": self._unknown}
        config = {
            "kind": self.kind,
            "model": self.codec.file,
            "sha256": hashlib.sha256(content).hexdigest(),
            "special_ids": ids,
        }
        _write(place / CONFIG, (json.dumps(config, indent=2) + "\n").encode("utf-8"))

    def _plain(self, row: list[int]) -> list[int]:
        # A word of the text may be spelled as a special token is, and a word vocabulary then finds its id.
        if self._special.isdisjoint(row):
            return row
        return [self._unknown if i in self._special else i for i in row]


class LibraryCodec:
    """A tokenizer of the `tokenizers` library.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; it is changed to read special tokens' names as plain text.
    """

    file: ClassVar[str | None] = "tokenizer.json"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._set()
        self._words = _words_of(tokenizer)

    @classmethod
    def from_bytes(cls, content: bytes) -> LibraryCodec:
        """Returns the codec that a tokenizer.json describes."""
        import tokenizers

        check_growth(content)
        return cls(tokenizers.Tokenizer.from_str(content.decode("utf-8")))

    @property
    def size(self) -> int:
        """The number of ids it knows, holes counted."""
        return max(self.names().values(), default=-1) + 1

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        if self._words is not None:
            return _looked_up(texts, *self._words)
        try:
            return [row.ids for row in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            raise
        except BaseException as error:  # the library raises bare Exception, as for a text it has no token for
            if not is_panic(error):
                raise
            raise TokenizerError(f"tokenizer: cannot read a text: {error}") from error

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids."""
        try:
            decoded: list[str] = self.tokenizer.decode_batch(rows, skip_special_tokens=False)
        except BaseException as error:
            if isinstance(error, Exception) or not is_panic(error):
                raise
            raise TokenizerError(f"tokenizer: cannot write a text: {error}") from error
        return decoded

    def names(self) -> dict[str, int]:
        """Returns token -> id."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def to_bytes(self) -> bytes:
        """Returns tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=True)).encode("utf-8")

    def _set(self) -> None:
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set()  # the library does not pickle the flag


def _words_of(tokenizer: Any) -> tuple[dict[str, int], int] | None:
    """The vocabulary and <unk>'s id of a tokenizer that looks words up between white space and does nothing else."""
    from tokenizers import Regex, models, pre_tokenizers

    plain = pre_tokenizers.Split(Regex(WHITE_SPACE), "removed")
    model, splitter = tokenizer.model, tokenizer.pre_tokenizer
    if (
        not isinstance(model, models.WordLevel)
        or tokenizer.normalizer is not None
        # Special tokens are plain text here (`_set`); others would be found first.
        or not all(token.special for token in tokenizer.get_added_tokens_decoder().values())
        or not isinstance(splitter, pre_tokenizers.Split)
        or splitter.__getstate__() != plain.__getstate__()
    ):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return (vocabulary, vocabulary[model.unk_token]) if model.unk_token in vocabulary else None


def _looked_up(texts: list[str], vocabulary: Mapping[str, int], unknown: int) -> list[list[int]]:
    """What the library gives for such a tokenizer, whose splitting by a regular expression takes five times as long."""
    rows = []
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"got {type(text).__name__}, which is no text")
        if not text.isascii():
            text.encode("utf-8")  # half of a surrogate pair is no text
        rows.append([vocabulary.get(word, unknown) for word in text.split()])
    return rows


class SentencePieceCodec:
    """A SentencePiece model.

    Args:
        content: the bytes of its .model file.
        exact: give back U+2581 as it came, through its bytes; SentencePiece alone makes a space of it.
    """

    file: ClassVar[str | None] = "tokenizer.model"

    def __init__(self, content: bytes, *, exact: bool) -> None:
        import sentencepiece

        self.content = content
        self.exact = exact
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in MARK.encode("utf-8")]
        has_bytes = all(self.processor.is_byte(piece) for piece in pieces)
        self.mark: list[int] = pieces if has_bytes else [self.processor.unk_id()]

    @property
    def size(self) -> int:
        """The number of pieces."""
        return int(self.processor.get_piece_size())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        rows: list[list[int]] = self.processor.encode(texts)
        if self.exact:
            for i, text in enumerate(texts):
                if MARK in text:
                    rows[i] = self._encode_marked(text)
        return rows

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids."""
        return [self.processor.decode(row) if row else "" for row in rows]

    def names(self) -> dict[str, int]:
        """Returns piece -> id."""
        return {self.processor.id_to_piece(i): i for i in range(self.size)}

    def to_bytes(self) -> bytes:
        """Returns the .model file."""
        return self.content

    def _encode_marked(self, text: str) -> list[int]:
        first, *others = [self.processor.encode(piece) for piece in text.split(MARK)]
        ids: list[int] = list(first)
        for other in others:
            ids += [*self.mark, *other]
        return ids


class ByteCodec:
    """The bytes of UTF-8, byte b at id `offset` + b; exact for any string, lone surrogates too.

    Args:
        offset: how many ids stand before the first byte's.
    """

    file: ClassVar[str | None] = None

    def __init__(self, offset: int) -> None:
        self.offset = offset

    @property
    def size(self) -> int:
        """The offset and 256."""
        return self.offset + 256

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        return [[self.offset + byte for byte in text.encode("utf-8", "surrogatepass")] for text in texts]

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids; bytes that are no UTF-8 become U+FFFD."""
        return [self._text(bytes(i - self.offset for i in row if i >= self.offset)) for row in rows]

    def names(self) -> dict[str, int]:
        """Returns byte, as in "<0x41>" -> id."""
        return {f"<0x{byte:02X}>": self.offset + byte for byte in range(256)}

    def to_bytes(self) -> bytes:
        """Returns nothing: there is nothing to keep."""
        return b""

    def _text(self, content: bytes) -> str:
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return content.decode("utf-8", "replace")


def read(path: Path) -> bytes:
    """Returns what a tokenizer's file holds.

    Raises:
        TokenizerError: it cannot be read, is no plain file, or is larger than any tokenizer.
    """
    try:
        # A link may lead to a device or a pipe, which has no end.
        if path.exists() and not path.is_file():
            raise TokenizerError(f"{path}: is no file")
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise TokenizerError(f"{path}: has {size:,} bytes; a tokenizer has at most {LARGEST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a resumed run writes its tokenizer again, and may be killed while it does."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TokenizerError(f"{path}: cannot be written ({error.strerror}); what was there is as it was") from error


def _require_unicode(text: str, number: int) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text {number} holds half of a surrogate pair at character {error.start + 1}, which is no text"
        ) from None
