"""From sentences to token ids, cached as Arrow under the name of corpus, tokenizer and options."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textvae.errors import CorpusError
from textvae.recipe import Data, Part
from textvae.text.cache import mapped
from textvae.text.codecs import CONFIG, TextTokenizer
from textvae.text.corpora import Corpus, quiet
from textvae.text.sources import fingerprint_of, is_stream
from textvae.types import Tokenizer

if TYPE_CHECKING:
    import datasets

COLUMNS = ["tokens", "length"]
ENCODING = 1  # raise it when the same tokenizer gives other ids, so that nothing older is taken from the cache
LIBRARIES = ("tokenizers", "sentencepiece")  # a release of theirs may give other ids


@dataclass(frozen=True)
class EncodedCorpus:
    """The token ids of each part.

    Attributes:
        parts: columns "tokens" (int32, <s> .. </s>) and "length" (int32, target tokens: </s> counted, <s> not).
        dropped: part -> reason -> sentences: the corpus's reasons and "too_long"; "truncated" ones are kept,
            shortened. A stream's counts grow while it is read.
        fingerprint: changes with the corpus, the tokenizer and the options.
        streaming: whether train is a stream.
    """

    parts: dict[Part, datasets.Dataset | datasets.IterableDataset]
    dropped: dict[str, dict[str, int]]
    fingerprint: str
    streaming: bool


def encode(corpus: Corpus, tokenizer: Tokenizer, data: Data, *, cache_dir: str | None = None) -> EncodedCorpus:
    """Returns the token ids of a corpus; a second call with the same three reads the cache.

    Args:
        corpus: the sentences.
        tokenizer: gives the ids, special tokens included.
        data: `max_length` and `too_long`.
        cache_dir: where the Arrow files lie; among datasets' own where absent.

    Raises:
        CorpusError: `max_length` leaves no sentence in a part.
    """
    import pyarrow.compute

    fingerprint = fingerprint_of(corpus.fingerprint, tokenizer_digest(tokenizer), data.max_length, data.too_long)
    parts: dict[Part, Any] = {}
    dropped: dict[str, dict[str, int]] = {}
    with quiet():
        for part, rows in corpus.parts.items():
            encoder = _Encoder(tokenizer, data)
            before = corpus.dropped.get(part, {})
            if is_stream(rows):
                stream: Any = rows.map(encoder, batched=True, remove_columns=["text"], features=_features())
                parts[part] = stream.select_columns(COLUMNS)
                encoder.counts = before  # the corpus's own counter, which grows while the stream is read
                dropped[part] = before
                continue
            name = fingerprint_of(fingerprint, part)
            encoded: Any = mapped(
                rows, encoder, folder=cache_dir, name=name, remove_columns=["text"], features=_features()
            )
            if len(encoded) == 0:
                raise CorpusError(
                    f"data.max_length: no sentence of the {part} part has {data.max_length} tokens or fewer "
                    "(</s> counted); raise it, or set data.too_long: truncate"
                )
            truncated = pyarrow.compute.sum(encoded.data.column("truncated")).as_py()
            counts = {"too_long": len(rows) - len(encoded), "truncated": truncated}
            dropped[part] = {**before, **{reason: count for reason, count in counts.items() if count}}
            parts[part] = encoded.select_columns(COLUMNS)
    return EncodedCorpus(parts=parts, dropped=dropped, fingerprint=fingerprint, streaming=corpus.streaming)


def tokenizer_digest(tokenizer: Tokenizer, *, named: bool = True) -> str:
    """Returns a hash of what a tokenizer saves and of what reads it: equal where it gives equal ids.

    Args:
        tokenizer: the tokenizer.
        named: whether its kind in a recipe counts; one that was learned, and the same read from its file
            (`kind: file`), have the same ids for the same words.
    """
    kind = type(tokenizer)
    digest = hashlib.sha256(f"{ENCODING} {kind.__module__}.{kind.__qualname__}".encode())
    if kind.__module__.partition(".")[0] != "textvae":
        with contextlib.suppress(OSError, TypeError):  # a class that was made without a file
            digest.update(inspect.getsource(kind).encode())
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{library} {version(library)}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = path.read_bytes()
            if not named and path.name == CONFIG and isinstance(tokenizer, TextTokenizer):
                content = json.dumps({**json.loads(content), "kind": None}).encode()
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(content)
    return digest.hexdigest()


class _Encoder:
    """Batches of text to batches of ids; counts what it leaves out or shortens."""

    def __init__(self, tokenizer: Tokenizer, data: Data) -> None:
        self.tokenizer = tokenizer
        self.longest = data.max_length
        self.truncates = data.too_long == "truncate"
        self.counts: dict[str, int] = {}

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        rows = self.tokenizer.encode(batch["text"])
        truncated = [self.longest is not None and len(row) - 1 > self.longest for row in rows]
        if any(truncated):
            reason = "truncated" if self.truncates else "too_long"
            self.counts[reason] = self.counts.get(reason, 0) + sum(truncated)
            if self.truncates:
                rows = [self._shortened(row) if long else row for row, long in zip(rows, truncated)]
            else:
                rows = [row for row, long in zip(rows, truncated) if not long]
                truncated = [False] * len(rows)
        return {"tokens": rows, "length": [len(row) - 1 for row in rows], "truncated": truncated}

    def _shortened(self, row: list[int]) -> list[int]:
        return [*row[: self.longest], self.tokenizer.eos_id]


def _features() -> datasets.Features:
    import datasets

    return datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "length": datasets.Value("int32"),
            "truncated": datasets.Value("bool"),
        }
    )
