"""Files that are there whole or as they were before, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from textvae.errors import CheckpointError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place once it is whole and on the disk.

    Raises:
        CheckpointError: it cannot be written; what was there is as it was.
    """
    # Of this process alone: another program may be writing the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _forget_abandoned(path)
        temporary.unlink(missing_ok=True)  # a link left there would be written through
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors leaves what only its owner may read
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk the half-written file is in the way of everything else
        raise CheckpointError(f"{path}: cannot be written ({reason_of(error)}); what was there is as it was") from error


def _forget_abandoned(path: Path) -> None:
    """Takes away what a process that is no more had begun to write in the place of a file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = left.name.removesuffix(".part").rpartition(".")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's
    return True


def reason_of(error: Exception) -> str:
    """Returns why a file cannot be written, in the system's words where it has some."""
    return str(getattr(error, "strerror", None) or error)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of them, is on the disk."""
    # Without this a crash of the machine can leave a renamed but empty file.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
