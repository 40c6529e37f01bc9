"""A run folder as a place: held by one training, its own entries no links, its metrics read line by line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textvae.checkpoint import CHECKPOINTS, METRICS, RECIPE, TOKENIZER, WEIGHTS
from textvae.errors import CheckpointError, TrainingError

LOCK = ".lock"
CURVES = "curves.png"
LARGEST_STEP = 10**12


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder for one training. One that wrote nothing takes the folder that it made away again.

    Raises:
        CheckpointError: see `check_own`.
        TrainingError: another process trains into it, or it cannot be written.
    """
    import fcntl

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_own(folder)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())  # not one just taken away
        except OSError:
            held = False
        if not held:
            raise TrainingError(f"{folder}: another training is writing into it; take another --out")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and [entry.name for entry in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def check_own(folder: Path) -> None:
    """Refuses a run folder in which something that a training writes is a link, or no plain file or folder.

    What is written through a link lands elsewhere, and a pipe is waited for without end. Recipe and weights, which are
    only read and replaced, may be links to files, as caches have them.

    Raises:
        CheckpointError: names the entry.
    """
    for name in (CHECKPOINTS, TOKENIZER, LOCK, METRICS, CURVES, RECIPE, WEIGHTS):
        path = folder / name
        replaced = name in (RECIPE, WEIGHTS)
        try:
            mode = path.stat().st_mode if replaced else path.lstat().st_mode
        except FileNotFoundError:
            if path.is_symlink():
                raise CheckpointError(f"{path}: is a link that leads nowhere; take it away") from None
            continue
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        wanted, word = (stat.S_ISDIR, "folder") if name in (CHECKPOINTS, TOKENIZER) else (stat.S_ISREG, "file")
        if not wanted(mode):
            found = "a link, which a training would write through" if stat.S_ISLNK(mode) else f"no plain {word}"
            raise CheckpointError(f"{path}: is {found}; take it away, or take another --out")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics, oldest first; lines that are no rows are left out.

    A row has `step`, `part` (train or validation) and figures: a line may have been cut short when the run was killed,
    and the file may be a stranger's.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("part") in ("train", "validation") and _is_step(row.get("step")):
            rows.append({key: value for key, value in row.items() if key == "part" or _is_figure(value)})
    return rows


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_STEP


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and abs(value) < 1e300 and not math.isnan(value))
