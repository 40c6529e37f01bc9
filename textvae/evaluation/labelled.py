"""Texts with labels and pairs of texts with scores, out of a user's files: what probes and similarities are of."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from textvae.errors import CorpusError, suggest
from textvae.text import files

TABLES = ("csv", "tsv")
LABELS = ".label"  # ending of the file that holds a text file's labels, line by line
PROBE_COLUMNS = ("text", "label")
PAIRS_COLUMNS = ("sentence1", "sentence2", "score")


class Labelled(NamedTuple):
    """Texts and what each is."""

    texts: Sequence[str]
    labels: Sequence[Hashable]


class Pairs(NamedTuple):
    """Pairs of texts and how alike people say they are."""

    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]


def load(path: str, columns: tuple[str, str] = PROBE_COLUMNS, *, file_format: str | None = None) -> Labelled:
    """Returns the texts of a file and their labels, as strings.

    Args:
        path: CSV, TSV, JSON or Parquet, each also compressed; or lines of text, whose labels are the lines of a file
            beside it: reviews.label for reviews.txt and reviews.txt.gz.
        columns: of text and label. Numbers count the columns of a CSV or TSV from 1, and say that its first line is a
            row and names none.
        file_format: text, csv, tsv, json or parquet; told by the name where absent.

    Raises:
        CorpusError: names file, column and row of what is not there or cannot be read.
    """
    kind = _kind(path, file_format)
    found = _beside(path) if kind == "text" else _rows(path, kind, columns, texts=1)
    texts, labels = [], []
    for number, (text, raw) in enumerate(found, start=1):
        label = _plain(raw)
        if not label and not text:
            continue  # a blank line
        if not label or not isinstance(text, str):
            column, got = (columns[1], raw) if isinstance(text, str) else (columns[0], text)
            raise CorpusError(f"{path}: row {number}: column {column!r}: got {got!r}; a row has a text and a label")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise CorpusError(f"{path}: holds no row")
    return Labelled(texts, labels)


def load_probe(
    train: str, test: str, columns: tuple[str, str] = PROBE_COLUMNS, *, file_format: str | None = None
) -> tuple[Labelled, Labelled]:
    """Returns what probes learn and what they are tested on; arguments as for `load`.

    Raises:
        CorpusError: as `load`, and as `check`.
    """
    parts = load(train, columns, file_format=file_format), load(test, columns, file_format=file_format)
    check(parts[0].labels, parts[1].labels, (train, test))
    return parts


def check(
    train: Sequence[Hashable], test: Sequence[Hashable], names: tuple[str, str] = ("probe, training", "probe, test")
) -> None:
    """Refuses labels that no probe can learn or be tested on.

    Args:
        train: labels.
        test: labels.
        names: of where they stand, for messages.

    Raises:
        CorpusError: fewer than 2 labels, each its own row's alone, or none of those to be tested.
    """
    known = list(dict.fromkeys(train))
    if len(known) < 2:
        raise CorpusError(f"{names[0]}: a classifier needs 2 labels or more; found {_some(known)} alone")
    if len(known) == len(train) > 2:
        raise CorpusError(
            f"{names[0]}: each of its {len(train):,} rows has a label of its own, as {_some(known)}; "
            "is that the column of labels?"
        )
    if not set(known) & set(test):
        raise CorpusError(f"{names[1]}: has labels {_some(test)}, and none of {names[0]}, as {_some(known)}")


def load_pairs(path: str, columns: tuple[str, str, str] = PAIRS_COLUMNS, *, file_format: str | None = None) -> Pairs:
    """Returns the pairs of a file and their scores, on any scale.

    Args:
        path: CSV, TSV, JSON or Parquet, each also compressed.
        columns: of both texts and of the score; numbers as for `load`.
        file_format: csv, tsv, json or parquet; told by the name where absent.

    Raises:
        CorpusError: names file, column and row of what is not there or cannot be read; or scores that are all the
            same, with which nothing correlates.
    """
    kind = _kind(path, file_format)
    if kind == "text":
        raise CorpusError(f"{path}: lines of text have no columns; pairs are read from csv, tsv, json and parquet")
    first, second, scores = [], [], []
    for number, (one, two, score) in enumerate(_rows(path, kind, columns, texts=2), start=1):
        if not one and not two and not _plain(score):
            continue  # a blank line
        for column, text in zip(columns, (one, two)):
            if not isinstance(text, str):
                raise CorpusError(f"{path}: row {number}: column {column!r}: got {text!r}; it must be a text")
        first.append(one)
        second.append(two)
        scores.append(_number(score, f"{path}: row {number}: column {columns[2]!r}"))
    if len(set(scores)) < 2:
        found = f"all {len(scores):,} are {scores[0]:g}" if scores else "there is no row"
        raise CorpusError(f"{path}: column {columns[2]!r}: scores must differ, and {found}")
    return Pairs(first, second, scores)


def _kind(path: str, file_format: str | None) -> str:
    known = list(dict.fromkeys(files.FORMATS.values()))
    if file_format is not None and file_format not in known:
        raise CorpusError(f"{path}: there is no format {file_format!r}{suggest(file_format, known)}")
    if not Path(path).is_file():
        raise CorpusError(f"{path}: is no file")
    try:
        return files.format_of(path, file_format)
    except CorpusError:
        raise CorpusError(
            f"{path}: its name does not tell its format; say which: {', '.join(known)} (--labelled-format)"
        ) from None


def _beside(path: str) -> Iterator[tuple[str | None, str | None]]:
    name = Path(path)
    if name.suffix.lower() in files.COMPRESSIONS:
        name = name.with_suffix("")
    wanted = name.with_suffix(LABELS)
    labels = next((str(wanted) + end for end in ("", *files.COMPRESSIONS) if Path(str(wanted) + end).is_file()), None)
    if labels is None:
        raise CorpusError(f"{path}: lines of text have their labels in a file beside them, and there is no {wanted}")
    texts = list(files.sentences(path, "text", "text"))
    found = [label and label.strip() for label in files.sentences(labels, "text", "text")]
    if len(texts) != len(found):
        raise CorpusError(f"{labels}: has {len(found):,} lines, and {path} {len(texts):,}")
    return zip(texts, found)


def _rows(path: str, kind: str, columns: tuple[str, ...], *, texts: int) -> Iterator[tuple[Any, ...]]:
    """The cells of the columns, row by row; the first `texts` of them are sentences."""
    numbers = [column.isdecimal() for column in columns]
    if any(numbers):
        if not all(numbers) or kind not in TABLES or "0" in columns:
            raise CorpusError(
                f"{path}, read as {kind}: columns: got {' '.join(columns)}; all by name, or, in a CSV or TSV without a "
                "line of names, all by number from 1"
            )
        return _by_number(path, kind, [int(column) - 1 for column in columns])
    known = files.columns(path, kind, columns)
    for column in columns:
        if column not in known:
            hint = "; number them from 1 if its first line names none" if kind in TABLES else ""
            raise CorpusError(f"{path}: has no column {column!r}{suggest(column, known)}{hint}")
    readers = [files.sentences if kind != "json" or i < texts else _json_values for i in range(len(columns))]
    return zip(*(read(path, kind, column) for read, column in zip(readers, columns)), strict=True)


def _json_values(path: str, kind: str, column: str) -> Iterator[Any]:
    """Labels and scores, which may be numbers; that the file is JSON throughout, the sentences' reading says."""
    lines = (line or "" for line in files.sentences(path, "text", "text"))
    items = json.loads("\n".join(lines)) if files.is_json_array(path) else map(json.loads, filter(str.strip, lines))
    return (item.get(column) for item in items)


def _by_number(path: str, kind: str, wanted: Sequence[int]) -> Iterator[tuple[str, ...]]:
    lines = (line or "" for line in files.sentences(path, "text", "text"))
    # In a TSV a tab always parts two cells, and quotes are letters.
    table = (line.split("\t") for line in lines) if kind == "tsv" else csv.reader(lines, strict=True)
    number = 0
    try:
        for number, cells in enumerate(table, start=1):
            if cells in ([], [""]):
                yield ("",) * len(wanted)  # a blank line
            elif len(cells) <= max(wanted):
                raise CorpusError(
                    f"{path}, read as {kind}: row {number} has {len(cells)} columns, and no column {max(wanted) + 1}"
                )
            else:
                yield tuple(cells[index] for index in wanted)
    except csv.Error as error:
        raise CorpusError(f"{path}: row {number + 1}: {error}") from None


def _plain(label: Any) -> str:
    """A label as text; nothing where there is none."""
    missing = label is None or isinstance(label, (list, dict)) or label != label
    return "" if missing else str(label).strip()


def _some(labels: Iterable[Hashable]) -> str:
    different = list(dict.fromkeys(labels))
    return ", ".join(map(repr, different[:5])) + (", .." if len(different) > 5 else "")


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{where}: got {value!r}; it must be a number")
    return number
