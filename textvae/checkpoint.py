"""Run folders: written whole or not at all, read without running anything, checked before they are believed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textvae.errors import CheckpointError
from textvae.written import reason_of, sync, whole

WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FITTED_PRIOR = "fitted_prior.safetensors"
STATE = "training.pt"
EXPORT = "export.json"  # of a folder that holds a run's programs, and no run
OURS = re.compile(r"step-[0-9]{9,}")
LEFT = re.compile(r"\.step-[0-9]{9,}\.(part|old)")  # by a training that was killed
KEPT = 2  # whole checkpoints on disk: the last, and one before it in case the last is damaged


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the parameters and buffers of `model` as safetensors, with a checksum inside, atomically."""
    _write_weights(_unique_state(model), path, {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads what `save_weights` wrote into `model`.

    Raises:
        CheckpointError: missing, truncated or altered file, one of another model, or one that holds NaN.
    """
    _copy(_read_weights(path), _unique_state(model), path)


def check_shapes(outline: nn.Module, path: Path, least: Mapping[str, int] | None = None) -> None:
    """Holds what a file of weights says of itself against a model without memory, before one with memory is made.

    Args:
        outline: the model, on the device "meta".
        path: the file of weights.
        least: modules that are not in the outline as they are: the numbers that each has at the very least.

    Raises:
        CheckpointError: no file of weights, or one of another model.
    """
    with _opened(path) as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    least = least or {}
    for part, numbers in least.items():
        there = sum(math.prod(shape) for name, shape in found.items() if name.split(".")[0] == part)
        if there < numbers:
            raise CheckpointError(
                f"{path}: is of another model than its recipe's, whose model.{part} has {numbers:,} numbers or more; "
                f"here are {there:,}"
            )

    def compared(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
        return {name: shape for name, shape in shapes.items() if name.split(".")[0] not in least}

    _compare(compared(_shapes(_unique_state(outline))), compared(found), path)


def load_part(model: nn.Module, path: Path, part: Sequence[str]) -> None:
    """Reads some modules' parameters and buffers of what `save_weights` wrote into `model`, and leaves the rest.

    Args:
        model: where they go.
        path: the file of weights.
        part: names of the modules.

    Raises:
        CheckpointError: missing, truncated or altered file, or modules of other shapes.
    """

    def chosen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in part}

    _copy(chosen(_read_weights(path)), chosen(_unique_state(model)), path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; half of a surrogate pair, which is no text, becomes a question mark."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def save_prior(kind: str, prior: nn.Module, folder: Path) -> None:
    """Writes a fitted prior into a run folder, atomically."""
    _write_weights(prior.state_dict(), folder / FITTED_PRIOR, {"kind": kind})


def load_prior(folder: Path) -> tuple[str, dict[str, Tensor]] | None:
    """Returns kind and state of a run folder's fitted prior; None where it has none.

    Raises:
        CheckpointError: a damaged file.
    """
    path = folder / FITTED_PRIOR
    if not path.exists():
        return None
    tensors = _read_weights(path)
    with safe_open(path, framework="pt") as file:
        kind = (file.metadata() or {}).get("kind", "")
    return kind, tensors


def _write_weights(state: Mapping[str, Tensor], path: Path, notes: Mapping[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **notes, "sha256": _digest(tensors)})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the run has no weights yet")
    try:
        path.open("rb").close()  # safetensors says of a file that it may not read that there is none
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({error})") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path}: its content does not match its checksum; the file is damaged")
    return tensors


def _compare(expected: Mapping[str, list[int]], found: Mapping[str, list[int]], path: Path) -> None:
    wrong = sorted(set(expected) ^ set(found)) + sorted(
        name for name in set(expected) & set(found) if expected[name] != found[name]
    )
    if wrong:
        raise CheckpointError(f"{path}: is of another model than its recipe's (differs in {', '.join(wrong[:4])})")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _copy(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    _compare(_shapes(expected), _shapes(tensors), path)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.isnan().any()]
    if broken:
        raise CheckpointError(f"{path}: holds NaN ({', '.join(broken[:4])}); its training diverged")
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    # Tied weights appear under several names; the first stands for all.
    seen: dict[int, str] = {}
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = name
            unique[name] = tensor
    return unique


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, step: int, model: nn.Module, state: Mapping[str, Any], position: object) -> Path:
    """Writes everything a training needs to go on exactly, then drops all but the newest checkpoints.

    Args:
        folder: the run folder.
        step: optimiser steps done.
        model: its weights go into safetensors.
        state: tensors and plain values (optimiser, objective, scaler), read back with weights_only.
        position: JSON values: epoch, step, best figure, ...

    Returns:
        The checkpoint's folder. It appears by one rename, so that a half-written one is never taken for whole.
    """
    parent = folder / CHECKPOINTS
    final = parent / f"step-{step:09d}"
    temporary = parent / f".step-{step:09d}.part"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clear(parent)
        temporary.mkdir()
        save_weights(model, temporary / WEIGHTS)
        _save_state(state, temporary / STATE)
        files = {name: _file_digest(temporary / name) for name in (WEIGHTS, STATE)}
        write_text(temporary / "state.json", json.dumps({"position": position, "sha256": files}, indent=1))
        _hide(final)
        os.replace(temporary, final)
        sync(parent)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = reason_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise CheckpointError(f"{final}: cannot be saved ({reason}); {_what_is_left(folder)}") from error
    with contextlib.suppress(OSError):  # what is too many does no harm
        for old in _checkpoints(folder)[KEPT:]:
            _hide(old)
    _clear(parent)
    return final


def _clear(parent: Path) -> None:
    """Removes what a killed training left, and what was hidden; nothing else that may lie there."""
    for hidden in parent.iterdir():
        if LEFT.fullmatch(hidden.name):
            shutil.rmtree(hidden, ignore_errors=True)


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    # Through a file of Python's: its errors say what is wrong with the disk, torch's own where in torch.
    with whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            raise OSError(str(error.__context__ or error)) from error


def _hide(checkpoint: Path) -> None:
    """Takes a checkpoint away by one rename: removed file by file, it would be half there for a while."""
    if checkpoint.exists():
        os.replace(checkpoint, checkpoint.with_name(f".{checkpoint.name}.old"))


def _what_is_left(folder: Path) -> str:
    last = latest_checkpoint(folder)
    if last is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint, {last}, is as it was: make room and go on with --resume"


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run folder, or None."""
    found = _checkpoints(folder)
    return found[0] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    parent = folder / CHECKPOINTS
    if not parent.is_dir():
        return []
    return sorted((p for p in parent.iterdir() if OURS.fullmatch(p.name) and p.is_dir()), reverse=True)


def load_checkpoint(checkpoint: Path, model: nn.Module) -> tuple[dict[str, Any], Any]:
    """Reads a checkpoint into `model` and returns (state, position) as they were saved.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names the one before, if any.
    """
    try:
        try:
            if not (checkpoint / "state.json").is_file():
                raise ValueError("no plain file")
            saved = json.loads((checkpoint / "state.json").read_text())
            digests, position = dict(saved["sha256"]), saved["position"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{checkpoint / 'state.json'}: is missing or damaged ({error})") from error
        for name in (WEIGHTS, STATE):
            path = checkpoint / name
            if not path.is_file() or _file_digest(path) != digests.get(name):
                raise CheckpointError(f"{path}: is missing or does not match its checksum; the file is damaged")
        load_weights(model, checkpoint / WEIGHTS)
        try:
            state = _load_state(checkpoint / STATE)
        except Exception as error:  # unpickling a hostile file may raise anything
            raise CheckpointError(f"{checkpoint / STATE}: cannot be read safely ({error})") from error
        return state, position
    except CheckpointError as error:
        others = [str(p) for p in _checkpoints(checkpoint.parent.parent) if p != checkpoint]
        hint = f"; remove {checkpoint} to go on from {others[0]}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error


def _load_state(path: Path) -> dict[str, Any]:
    # Stored, never packed, as torch.save writes it: a packed file could grow a thousandfold while it is read.
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError("it is packed")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no state of a training")
    return state


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
