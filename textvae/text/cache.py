"""A corpus's cached Arrow files, each believed only while it has the size that it was written with.

datasets believes a file by its name: one that was cut off (a power cut, a disk that was full) is a smaller corpus to
it, or the end of every later start.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from textvae.errors import CheckpointError
from textvae.written import sync, whole


def place(folder: str | None) -> Path:
    """Returns where cached files lie, made: in `folder`, or else among datasets' own."""
    import datasets

    found = Path(folder) if folder is not None else Path(datasets.config.HF_DATASETS_CACHE) / "textvae"
    found = found.expanduser()
    found.mkdir(parents=True, exist_ok=True)
    return found


def mapped(rows: Any, function: Callable[..., Any], *, folder: str | None, name: str, **options: Any) -> Any:
    """Returns `rows.map(function)` from the file of that name, which is made where there is none or a damaged one.

    Args:
        rows: a datasets.Dataset.
        function: of a batch.
        folder: see `place`.
        name: of the result, a hash of all that it depends on.
        options: of `map`.
    """
    path = place(folder) / f"{name}.arrow"
    with _held(path):
        if path.exists() and not _is_whole(path):
            path.unlink()
        result = rows.map(function, batched=True, new_fingerprint=name, cache_file_name=str(path), **options)
        if path.exists():
            _seal(path, [path])
    return result


def generated(make: Callable[[str], Any], *, name: str) -> Any:
    """Returns what `make` reads into a folder of that name; it reads anew where there is none or a damaged one.

    Args:
        make: the folder's path -> a datasets.Dataset whose files lie in it.
        name: a hash of all that it depends on.
    """
    path = place(None) / f"{name}.read"
    with _held(path):
        if path.exists() and not _is_whole(path):
            shutil.rmtree(path)
        try:
            result = make(str(path))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # half of it would be in the way of the next try
            raise
        _seal(path, [Path(file["filename"]) for file in result.cache_files])
    return result


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """While a program makes what has that path, or looks whether it is whole, others wait."""
    from filelock import FileLock

    with contextlib.ExitStack() as held:
        # A folder that cannot be written has nothing to wait for, and some file systems know no locks.
        with contextlib.suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(path.with_name(f"{path.name}.lock")))
        yield


def _sizes(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads(_sizes(path).read_text(encoding="utf-8"))
        return bool(sizes) and all(Path(name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _seal(path: Path, files: list[Path]) -> None:
    if _is_whole(path):
        return
    # Where the sizes cannot be written the next start makes it all anew.
    with contextlib.suppress(OSError, CheckpointError):
        for file in files:
            sync(file)
        with whole(_sizes(path)) as written:
            written.write_text(json.dumps({str(file): file.stat().st_size for file in files}), encoding="utf-8")
