"""The latents of a corpus as a Parquet file: text, label and z, a row a sentence, in constant memory."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textvae.errors import CorpusError, UserError, suggest
from textvae.evaluation.labelled import LABELS, TABLES
from textvae.generation import given
from textvae.text import files

if TYPE_CHECKING:
    from textvae.api import TextVAE

CHUNK = 1000  # sentences encoded, and written, at once

Row = tuple[str, str | None]


def rows_of(
    path: str, *, column: str = "text", label_column: str | None = None, file_format: str | None = None
) -> Iterator[Row]:
    """Yields text and label of each row of a file, one at a time; a row without a text is left out.

    Args:
        path: CSV, TSV, JSON or Parquet, whose columns have names, or lines of text; each also compressed.
        column: of the texts.
        label_column: of the labels; the column "label" where there is one. The labels of lines of text are the lines
            of a file beside them, reviews.label for reviews.txt, where there is one.
        file_format: text, csv, tsv, json or parquet; told by the name where absent.

    Yields:
        (text, label), the label None where there is none.

    Raises:
        CorpusError: names file, column and line of what is not there or cannot be read.
    """
    known = list(dict.fromkeys(files.FORMATS.values()))
    if file_format is not None and file_format not in known:
        raise CorpusError(f"{path}: there is no format {file_format!r}{suggest(file_format, known)}")
    if not Path(path).is_file():
        raise CorpusError(f"{path}: is no file")
    try:
        kind = files.format_of(path, file_format)
    except CorpusError:
        message = f"{path}: its name does not tell its format; say which: {', '.join(known)} (--corpus-format)"
        raise CorpusError(message) from None
    if kind == "text":
        pairs = _lines(path)
    else:
        columns = files.columns(path, kind, (column, label_column or "label"))
        for name in (column, label_column):
            if name is not None and name not in columns:
                raise CorpusError(f"{path}: has no column {name!r}{suggest(name, columns)}")
        name = label_column or ("label" if "label" in columns else None)
        texts = files.sentences(path, kind, column)
        labels = itertools.repeat(None) if name is None else _cells(path, kind, name)
        pairs = zip(texts, labels)
    for text, label in pairs:
        if text is not None and not isinstance(text, str):
            raise CorpusError(f"{path}: column {column!r}: got {text!r}; it must be a text")
        missing = label is None or label != label or not str(label).strip()
        blank = kind in TABLES and not text and missing  # a blank line, which has no cells
        if text is not None and not blank:
            yield text, None if missing else str(label).strip()


def write_latents(vae: TextVAE, rows: Iterable[Row], out: str | Path, *, chunk: int = CHUNK) -> int:
    """Encodes sentences and writes them as Parquet; the file is there whole, or not at all.

    Columns: text and label (strings; label null where there is none), mean and scale, each a list of D float32: the
    posterior's mean and standard deviations.

    Args:
        vae: a run.
        rows: (text, label); any iterator, of which `chunk` rows are held at a time.
        out: the file.
        chunk: sentences encoded at once; a row group of the file.

    Returns:
        How many rows were written.

    Raises:
        UserError: chunk below 1, a language model, no row, or a file that cannot be written.
    """
    import pyarrow as pa

    chunk = given.count(chunk, "chunk", 1)
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file")
    if not out.parent.is_dir():
        raise UserError(f"{out}: cannot be written; {out.parent} is no folder")
    vector = pa.list_(pa.float32(), vae.latent_dim)
    schema = pa.schema([("text", pa.string()), ("label", pa.string()), ("mean", vector), ("scale", vector)])
    temporary, count, rows = out.with_name(f".{out.name}.{os.getpid()}.part"), 0, iter(rows)
    opened = _opened(temporary, out, schema)
    try:
        with opened as writer:
            while some := list(itertools.islice(rows, chunk)):
                texts = [text for text, _ in some]
                labels = [None if label is None else str(label) for _, label in some]
                latents = [_vectors(z, vector) for z in vae.encode_distribution(texts)]
                writer.write_table(pa.table([texts, pa.array(labels, pa.string()), *latents], schema=schema))
                count += len(some)
        if not count:
            raise UserError(f"{out}: there is no sentence to write")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _opened(temporary: Path, out: Path, schema: Any) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetWriter(temporary, schema)
    except OSError as error:  # which names the hidden file
        raise UserError(f"{out}: cannot be written ({os.strerror(error.errno or errno.EIO)})") from error


def _vectors(z: Any, kind: Any) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(z.contiguous().flatten().numpy()), type=kind)


def _lines(path: str) -> Iterator[tuple[str | None, str | None]]:
    name = Path(path)
    if name.suffix.lower() in files.COMPRESSIONS:
        name = name.with_suffix("")
    beside = str(name.with_suffix(LABELS))
    found = next((beside + end for end in ("", *files.COMPRESSIONS) if Path(beside + end).is_file()), None)
    texts = files.sentences(path, "text", "text")
    if found is None:
        yield from ((text, None) for text in texts)
        return
    for number, (text, label) in enumerate(itertools.zip_longest(texts, files.sentences(found, "text", "text")), 1):
        if text is None or label is None:
            longer, shorter = (path, found) if label is None else (found, path)
            raise CorpusError(f"{shorter}: ends at line {number - 1:,}, and {longer} goes on; they have a line each")
        yield text, label


def _cells(path: str, kind: str, column: str) -> Iterator[Any]:
    """Labels, which may be numbers in JSON; that the file is JSON throughout, the texts' reading says."""
    if kind != "json":
        return files.sentences(path, kind, column)
    lines = (line or "" for line in files.sentences(path, "text", "text"))
    items = json.loads("\n".join(lines)) if files.is_json_array(path) else map(json.loads, filter(str.strip, lines))
    return (item.get(column) for item in items)
