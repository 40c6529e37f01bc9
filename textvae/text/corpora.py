"""From a recipe's `data` to sentences: one source, its parts, cleaned and counted, held as Arrow by datasets."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textvae.errors import CorpusError
from textvae.recipe import PARTS, Data, Part
from textvae.text.cache import mapped
from textvae.text.sources import Raw, fingerprint_of, is_stream, open_parts, sentence_features

if TYPE_CHECKING:
    import datasets

VALIDATION_FRACTION = 0.05
CLEANING = 1  # raise it when `_clean_text` gives other text, so that nothing older is taken from the cache


@dataclass(frozen=True)
class Corpus:
    """The sentences of each part.

    Attributes:
        parts: each with the one column "text"; train is an IterableDataset where it is streamed.
        dropped: part -> reason ("empty", "null") -> sentences; a stream's counts grow while it is read.
        fingerprint: changes with the sentences and with what is done to them.
        streaming: whether train is a stream.
        notes: what was done that the recipe does not say.
    """

    parts: dict[Part, datasets.Dataset | datasets.IterableDataset]
    dropped: dict[str, dict[str, int]]
    fingerprint: str
    streaming: bool
    notes: tuple[str, ...] = ()


def load(data: Data) -> Corpus:
    """Returns the sentences that a recipe's `data` describes; the same call gives the same sentences.

    Args:
        data: exactly one source, and how its sentences are cleaned.

    Raises:
        CorpusError: names the key, file, split or column that cannot be read as `data` says.
    """
    with quiet():
        parts: dict[Part, Any] = {}
        dropped: dict[str, dict[str, int]] = {}
        identities: dict[Part, str] = {}
        notes: tuple[str, ...] = ()
        for part, raw in open_parts(data).items():
            clean = _clean_stream if is_stream(raw.rows) else _clean
            parts[part], dropped[part] = clean(raw, data, part)
            identities[part] = raw.identity
        for part, rows in parts.items():
            _require_sentences(rows, part, data, dropped[part])
        if "validation" not in parts:
            parts, note = _cut_validation(parts, data)
            dropped.setdefault("validation", {})
            notes = (note,)
        if data.limit is not None and "validation" in data.limit:
            parts["validation"] = _first(parts["validation"], data.limit["validation"])
    cleaning = data.model_dump(include={"lowercase", "normalize", "limit", "validation_fraction"})
    return Corpus(
        parts={part: parts[part] for part in PARTS if part in parts},
        dropped=dropped,
        fingerprint=fingerprint_of(identities, cleaning, CLEANING),
        streaming=is_stream(parts["train"]),
        notes=notes,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """datasets without its progress bars, which would stand between a training's own lines."""
    import datasets

    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def cleaned(text: str, data: Data) -> str:
    """Returns a text as the corpus's own are before they are tokenised: in small letters, normalised, or as it is."""
    text = text.lower() if data.lowercase else text
    return unicodedata.normalize(data.normalize, text) if data.normalize else text


def _clean(raw: Raw, data: Data, part: Part) -> tuple[Any, dict[str, int]]:
    def clean(batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
        kept = (text for text in batch["text"] if text is not None and text.strip())
        return {"text": [cleaned(text, data) for text in kept]}

    name = fingerprint_of(raw.identity, data.lowercase, data.normalize, CLEANING)
    rows = mapped(raw.rows, clean, folder=None, name=name, features=sentence_features())
    batches = raw.rows.with_format("arrow").iter(batch_size=10_000)
    nulls = sum(table["text"].null_count for table in batches)
    counts = {"null": nulls, "empty": len(raw.rows) - len(rows) - nulls}
    # Validation is limited later, for it may yet be cut from train.
    limit = (data.limit or {}).get(part) if part != "validation" else None
    return _first(rows, limit), {reason: count for reason, count in counts.items() if count}


def _clean_stream(raw: Raw, data: Data, part: Part) -> tuple[Any, dict[str, int]]:
    counts: dict[str, int] = {}

    def keep(row: Mapping[str, str | None]) -> bool:
        text = row["text"]
        if text is not None and text.strip():
            return True
        reason = "null" if text is None else "empty"
        counts[reason] = counts.get(reason, 0) + 1
        return False

    def clean(row: Mapping[str, str]) -> dict[str, str]:
        return {"text": cleaned(row["text"], data)}

    rows = raw.rows.filter(keep).map(clean, features=sentence_features())
    limit = (data.limit or {}).get(part)
    return (rows if limit is None else rows.take(limit)), counts


def _first(rows: Any, limit: int | None) -> Any:
    return rows if limit is None or limit >= len(rows) else rows.select(range(limit))


def _cut_validation(parts: dict[Part, Any], data: Data) -> tuple[dict[Part, Any], str]:
    """Cuts sentences drawn by a fixed seed from train, so that every training of a corpus is judged alike."""
    import numpy

    train = parts["train"]
    if is_stream(train):
        raise CorpusError(
            "data.splits.validation: is missing, and a stream cannot be cut; name a validation part, or do not stream"
        )
    fraction = data.validation_fraction or VALIDATION_FRACTION
    count = max(1, round(fraction * len(train)))
    if count >= len(train):
        raise CorpusError(f"data.validation_fraction: {fraction} of {len(train)} train sentences leaves none to train")
    chosen = numpy.zeros(len(train), dtype=bool)
    chosen[numpy.random.default_rng(0).permutation(len(train))[:count]] = True
    cut: dict[Part, Any] = {
        "train": train.select(numpy.flatnonzero(~chosen)),
        "validation": train.select(numpy.flatnonzero(chosen)),
    }
    return {**parts, **cut}, f"validation: {count} sentences cut from train ({fraction:g} of it, drawn by a fixed seed)"


def _require_sentences(rows: Any, part: Part, data: Data, dropped: dict[str, int]) -> None:
    found = next(iter(rows), None) is not None if is_stream(rows) else len(rows) > 0
    if not found:
        counted = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
        raise CorpusError(f"data.{data.source}: the {part} part holds no sentence; dropped: {counted}")
    if is_stream(rows):
        dropped.clear()  # the look at the first sentence is no reading
