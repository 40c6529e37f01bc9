"""Where sentences come from: the Hub, local files, a folder of datasets, the built-in grammar. Not yet cleaned."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from textvae.errors import CorpusError, suggest
from textvae.recipe import PARTS, Data, Part
from textvae.text import files
from textvae.text.cache import generated

if TYPE_CHECKING:
    import datasets

CONVENTIONAL_SPLITS: dict[Part, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}
READING = 1  # raise it when `files` reads other sentences, so that nothing older is taken from the cache


class Raw(NamedTuple):
    """A part as its source gives it: the column "text", nulls included, and what tells it from another."""

    rows: Any  # datasets.Dataset | datasets.IterableDataset
    identity: str


def open_parts(data: Data) -> dict[Part, Raw]:
    """Returns the parts of the one source that `data` names.

    Raises:
        CorpusError: names the key, file, split or column that cannot be read as `data` says.
    """
    sources = {"hub": _from_hub, "files": _from_files, "folder": _from_folder, "grammar": _from_grammar}
    return sources[data.source](data)


def fingerprint_of(*values: Any) -> str:
    """Returns a name for plain values (strings, numbers, mappings, lists) that differs where they differ."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def sentence_features() -> datasets.Features:
    """Returns what every part holds: one column "text"."""
    import datasets

    return datasets.Features({"text": datasets.Value("string")})


def is_stream(rows: Any) -> bool:
    """Returns whether a part is read anew each time it is gone through."""
    import datasets

    return isinstance(rows, datasets.IterableDataset)


def choose_column(columns: Mapping[str, str], wanted: str | None, where: str) -> str:
    """Returns the column of sentences: the wanted one, else "text", else the only one of strings.

    Args:
        columns: name -> type, "string" where sentences can be.
        wanted: the recipe's `data.column`.
        where: what holds the columns, for messages.

    Raises:
        CorpusError: no such column, one that holds no strings, or several to choose from.
    """
    strings = [name for name, kind in columns.items() if kind == files.STRING]
    listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none at all"
    if wanted is not None:
        if wanted not in columns:
            raise CorpusError(f"data.column: {where} has no column {wanted!r}{suggest(wanted, columns)}")
        if wanted not in strings:
            raise CorpusError(
                f"data.column: {wanted!r} of {where} holds {columns[wanted]}, and sentences are strings; "
                f"its columns: {listed}"
            )
        return wanted
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        headed = where.endswith(("csv", "tsv"))
        hint = " (the first line of a CSV or TSV file names its columns)" if headed else ""
        raise CorpusError(f"data.column: say which column of {where} holds the sentences{hint}; its columns: {listed}")
    return strings[0]


def choose_splits(known: Iterable[str], data: Data, where: str) -> dict[Part, str]:
    """Returns part -> the source's split: as `data.splits` says, else by the conventional names.

    Raises:
        CorpusError: a named split that does not exist, or no split for train.
    """
    known = list(known)
    chosen: dict[Part, str] = {}
    for part in PARTS:
        named = (data.splits or {}).get(part)
        if named is not None and named not in known:
            raise CorpusError(f"data.splits.{part}: {where} has no split {named!r}{suggest(named, known)}")
        if named is None and part == "validation" and data.validation_fraction is not None:
            continue  # the recipe wants it cut from train
        found = named or next((name for name in CONVENTIONAL_SPLITS[part] if name in known), None)
        if found is not None:
            chosen[part] = found
    if "train" not in chosen:
        raise CorpusError(f"data.splits.train: say which split of {where} to train on{suggest('train', known)}")
    return chosen


def _from_files(data: Data) -> dict[Part, Raw]:
    given = data.files or {}
    return {part: _file_part(part, given[part], data) for part in PARTS if part in given}


def _file_part(part: Part, paths: str | list[str], data: Data) -> Raw:
    import datasets

    key = f"data.files.{part}"
    shards: list[tuple[str, str, str]] = []  # (path, format, column)
    column: str | None = data.column
    for path in [paths] if isinstance(paths, str) else paths:
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            hint = "; data.folder reads a folder of save_to_disk" if os.path.isdir(path) else ""
            raise CorpusError(f"{key}: {path} is no file{hint}")
        kind = files.format_of(path, data.format)
        # All files of a part have the sentences in the same column.
        wanted = () if column is None else (column,)
        column = choose_column(files.columns(path, kind, wanted), column, f"{path}, read as {kind}")
        shards.append((path, kind, column))
    if not shards:
        raise CorpusError(f"{key}: the list is empty; name a file")
    arguments: dict[str, Any] = {"features": sentence_features(), "gen_kwargs": {"shards": shards}}
    if data.streaming and part == "train":
        if held := [path for path, kind, _ in shards if kind == "json" and files.is_json_array(path)]:
            raise CorpusError(f"{key}: {held[0]} is one JSON array, which cannot be streamed; write an object a line")
        stats = [os.stat(path) for path, _, _ in shards]
        identity = fingerprint_of(shards, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
        return Raw(datasets.IterableDataset.from_generator(_rows_of_files, **arguments), identity)
    identity = fingerprint_of(READING, [(files.digest(path), kind, column) for path, kind, column in shards])
    if next(_rows_of_files(shards), None) is None:  # datasets writes no table without rows
        return Raw(datasets.Dataset.from_dict({"text": []}, features=sentence_features()), identity)
    try:
        rows = generated(
            lambda folder: datasets.Dataset.from_generator(
                _rows_of_files, fingerprint=identity, cache_dir=folder, **arguments
            ),
            name=identity,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):  # a full disk, most often
            raise CorpusError(f"{key}: datasets' cache cannot be written: {error.__cause__}") from error
        raise
    return Raw(rows, identity)


def _rows_of_files(shards: list[tuple[str, str, str]]) -> Iterator[dict[str, str | None]]:
    for path, kind, column in shards:
        for sentence in files.sentences(path, kind, column):
            yield {"text": sentence}


def _from_hub(data: Data) -> dict[Part, Raw]:
    import datasets

    hub = data.hub
    assert hub is not None
    where = f"data set {hub.name!r}"
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as READERS

    if hub.name in READERS:  # which would look for files in the folder that textvae was started in
        raise CorpusError(f"data.hub.name: {hub.name!r} is no data set but a reader of files; name these in data.files")
    try:
        found = datasets.load_dataset(hub.name, hub.config, revision=hub.revision, streaming=data.streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        hint = ""
        if isinstance(error, ConnectionError):
            hint = ". Without the Hub name files of your own: 'data.files={train: train.txt, validation: valid.txt}'"
        raise CorpusError(f"data.hub: {where} cannot be loaded: {str(error).strip()}{hint}") from error
    splits: dict[Part, str] = choose_splits(found, data, where)
    return {part: _table_part(found[split], split, part, data, where) for part, split in splits.items()}


def _from_folder(data: Data) -> dict[Part, Raw]:
    import datasets

    assert data.folder is not None
    folder = os.path.expanduser(data.folder)
    if not os.path.isdir(folder):
        raise CorpusError(f"data.folder: {folder} is no folder; name one that datasets' save_to_disk wrote")
    try:
        found: Any = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(f"data.folder: {folder} cannot be read as save_to_disk writes it: {error}") from error
    splits = {"train": found} if isinstance(found, datasets.Dataset) else found
    chosen = choose_splits(splits, data, folder)
    raws: dict[Part, Raw] = {}
    for part, split in chosen.items():
        rows = splits[split]
        if data.streaming and part == "train":
            column = choose_column(_types(rows), data.column, folder)
            stream = rows.select_columns(column).rename_columns({column: "text"}).to_iterable_dataset()
            raws[part] = Raw(stream, fingerprint_of(rows._fingerprint, column))
        else:
            raws[part] = _table_part(rows, split, part, data, folder)
    return raws


def _table_part(rows: Any, split: str, part: Part, data: Data, where: str) -> Raw:
    """A split of a data set as a part; of a stream, only train stays one."""
    import datasets

    column = choose_column(_types(rows), data.column, f"{where}, split {split!r},")
    rows = rows.select_columns(column)
    rows = rows if column == "text" else rows.rename_column(column, "text")
    if not is_stream(rows):
        return Raw(rows, rows._fingerprint)
    if part == "train":
        assert data.hub is not None
        return Raw(rows, fingerprint_of(data.hub.model_dump(), split, column))
    sentences = [row["text"] for row in rows]
    return Raw(datasets.Dataset.from_dict({"text": sentences}, features=sentence_features()), fingerprint_of(sentences))


def _from_grammar(data: Data) -> dict[Part, Raw]:
    import datasets

    from textvae.text.grammar import sentences

    grammar = data.grammar
    assert grammar is not None
    counts: dict[Part, int] = {"train": grammar.train, "validation": grammar.validation, "test": grammar.test}
    raws: dict[Part, Raw] = {}
    for part, count in counts.items():
        drawn = sentences(grammar.seed, part, count)
        rows = datasets.Dataset.from_dict({"text": drawn}, features=sentence_features())
        raws[part] = Raw(rows, fingerprint_of(drawn))
    return raws


def _types(rows: Any) -> dict[str, str]:
    import datasets

    features = rows.features
    if features is None:  # a stream that does not say what it holds
        first: Mapping[str, Any] = next(iter(rows), {})
        return {name: files.STRING if isinstance(value, str) else type(value).__name__ for name, value in first.items()}
    return {
        name: (files.STRING if kind.dtype in ("string", "large_string") else kind.dtype)
        if isinstance(kind, datasets.Value)
        else type(kind).__name__
        for name, kind in features.items()
    }
