"""Sentences out of local files, row by row: text, CSV, TSV, JSON and Parquet, each also compressed.

Read here and not by datasets' own loaders, because those split text at lone carriage returns, read the
words "null" and "NA" of a CSV as missing, and cannot say on which line a file is broken.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from textvae.errors import CorpusError

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
STRING = "string"
PEEKED_ROWS = 1000  # rows looked at to tell the type of a CSV column, or what keys JSON has


def format_of(path: str, declared: str | None = None) -> str:
    """Returns the format of a file: the declared one, else the one its name tells.

    Raises:
        CorpusError: nothing is declared and the name tells none.
    """
    if declared is not None:
        return declared
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    found = suffixes[-1] if suffixes else ""
    if found not in FORMATS:
        raise CorpusError(
            f"{path}: its name does not tell its format; known: {', '.join(FORMATS)}, each also with "
            f"{', '.join(COMPRESSIONS)}. Say it with data.format: {' | '.join(dict.fromkeys(FORMATS.values()))}"
        )
    return FORMATS[found]


def columns(path: str, kind: str, wanted: Collection[str] = ()) -> dict[str, str]:
    """Returns the columns of a file and their types; sentences are where the type is "string".

    Args:
        path: the file.
        kind: its format, as `format_of` gives it.
        wanted: keys that a JSON file is searched for, beyond the objects whose keys are looked at in any case.

    Raises:
        CorpusError: a file that cannot be read as its format says.
    """
    if kind == "text":
        return {"text": STRING}
    if kind in ("csv", "tsv"):
        rows = [row for _, row in itertools.islice(_table(path, kind), PEEKED_ROWS + 1)]
        header = rows[0] if rows else []
        return {name: _cell_type(row[i] for row in rows[1:] if i < len(row)) for i, name in enumerate(header)}
    if kind == "json":
        seen: dict[str, set[str]] = {}
        for number, (_, item) in enumerate(_objects(path)):
            if number >= PEEKED_ROWS and all(seen.get(name) for name in wanted):
                break
            for name, value in item.items():
                seen.setdefault(name, set()).update(() if value is None else (_json_type(value),))
        return {name: " or ".join(sorted(types)) or "null" for name, types in seen.items()}
    with _parquet(path) as file:
        return {field.name: _arrow_type(field.type) for field in file.schema_arrow}


def sentences(path: str, kind: str, column: str) -> Iterator[str | None]:
    """Yields the cells of one column in order; None where there is none.

    Raises:
        CorpusError: names file and line of what cannot be read.
    """
    if kind == "text":
        for line in _lines(path):
            yield without_newline(line)
    elif kind in ("csv", "tsv"):
        yield from _csv_column(path, kind, column)
    elif kind == "json":
        yield from _json_column(path, column)
    else:
        with _parquet(path) as file:
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()


def is_json_array(path: str) -> bool:
    """Returns whether a JSON file is one array, which must be held whole to be read."""
    first = next((line for line in _lines(path) if line.strip()), "")
    return first.lstrip().startswith("[")


def digest(path: str) -> str:
    """Returns a hash of a file's bytes."""
    with _reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be read, or is damaged: {error}") from error


def _open(path: str) -> IO[bytes]:
    openers: dict[str, Callable[[str], Any]] = {
        ".gz": gzip.open,
        ".xz": lzma.open,
        ".bz2": bz2.open,
        ".zst": _open_zst,
    }
    opened: IO[bytes] = openers.get(Path(path).suffix.lower(), _open_plain)(path)
    return opened


def _open_plain(path: str) -> IO[bytes]:
    return open(path, "rb")


def _open_zst(path: str) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


def _lines(path: str) -> Iterator[str]:
    """Lines with their newline. Only "\\n" ends one: U+2028, U+0085, VT, FF and CR belong to sentences."""
    with _reading(path), _open(path) as file:
        yield from decoded(file, path)


def decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yields lines of UTF-8 as text, with their newline and without a byte order mark.

    Raises:
        CorpusError: another encoding; `name` is the file's in its message.
    """
    offset = 0
    for number, raw in enumerate(lines, start=1):
        if number == 1 and _is_utf16(raw):
            raise CorpusError(f"{name}: every other byte is 0, as in UTF-16; save the file as UTF-8")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{name}: line {number}, byte {offset + error.start} of the file's text: "
                f"0x{raw[error.start]:02x} is not UTF-8 here; save the file as UTF-8"
            ) from None
        offset += len(raw)
        yield line.removeprefix("\ufeff") if number == 1 else line


def _is_utf16(line: bytes) -> bool:
    """Whether a first line is most likely Latin text in UTF-16 without a byte order mark: UTF-8, but full of NULs."""
    halves = line[0::2], line[1::2]
    zeros = [half.count(0) / max(len(half), 1) for half in halves]
    return len(line) > 3 and min(zeros) < 0.1 and max(zeros) > 0.9


def without_newline(line: str) -> str:
    """Returns a line without what ends it."""
    return line.removesuffix("\n").removesuffix("\r")


def _table(path: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of CSV, or of TSV, which has no quotes: a tab always parts two cells."""
    if kind == "tsv":
        for number, line in enumerate(_lines(path), start=1):
            yield number, without_newline(line).split("\t")
        return
    csv.field_size_limit(2**31 - 1)  # 128 KiB else, for the whole process
    reader = csv.reader(_lines(path), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CorpusError(
                f"{path}: the row of line {start}: {error}; a cell with a comma, a quote or a newline "
                'stands in quotes, and a quote in it is doubled ("")'
            ) from None
        yield start, cells or [""]


def _csv_column(path: str, kind: str, column: str) -> Iterator[str]:
    rows = _table(path, kind)
    _, header = next(rows)
    if header.count(column) > 1:
        raise CorpusError(f"{path}: the first line names {header.count(column)} columns {column!r}; rename all but one")
    index = header.index(column)
    for number, cells in rows:
        if len(cells) != len(header) and cells != [""]:
            raise CorpusError(
                f"{path}: line {number} has {len(cells)} cells, and the first line names {len(header)} columns"
            )
        yield cells[index] if cells != [""] else ""


def _objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of JSON lines, or of one array of objects."""
    if is_json_array(path):
        try:
            items = json.loads("".join(_lines(path)))
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}: line {error.lineno}: no JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}: its JSON cannot be read: {error}") from None
        numbered: Iterator[tuple[str, Any]] = ((f"item {i}", item) for i, item in enumerate(items))
    else:
        numbered = _json_lines(path)
    for where, item in numbered:
        if not isinstance(item, dict):
            raise CorpusError(
                f"{path}: {where} is a {_json_type(item)}; needed is an object a line, or one array of objects"
            )
        yield where, item


def _json_lines(path: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{path}: line {number}: no JSON: {error.msg} at column {error.colno}; "
                    "needed is an object a line, or one array of objects"
                ) from None
            except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
                raise CorpusError(f"{path}: line {number}: its JSON cannot be read: {error}") from None


def _json_column(path: str, column: str) -> Iterator[str | None]:
    for where, item in _objects(path):
        value = item.get(column)
        if value is not None and not isinstance(value, str):
            raise CorpusError(f"{path}: {where}: {column!r} is a {_json_type(value)}, and sentences are strings")
        if value is not None and not _is_unicode(value):
            raise CorpusError(f"{path}: {where}: {column!r} holds half of a surrogate pair, which is no text")
        yield value


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with _reading(path), contextlib.ExitStack() as stack:
        source: Any = path
        if Path(path).suffix.lower() in COMPRESSIONS:
            # Parquet is read from its end, and a compressed file only from its start.
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(_open(path)), source)
        try:
            yield stack.enter_context(pyarrow.parquet.ParquetFile(source))
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: cannot be read as Parquet: {error}") from None


def _cell_type(cells: Iterable[str]) -> str:
    filled = [cell for cell in cells if cell.strip()]
    return "number" if filled and all(_is_number(cell) for cell in filled) else STRING


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_type(value: Any) -> str:
    names = {str: STRING, bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), "null")


def _arrow_type(kind: Any) -> str:
    import pyarrow.types as types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)
    return STRING if is_text else str(kind)
