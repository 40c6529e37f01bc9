"""What a caller hands over, checked before any work: a mistake is one message that names the argument."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from textvae.errors import UserError

MOST = 10**8  # samples, steps: beyond that a number is a slip of the finger
FARTHEST = 1e15  # of a latent: the squares of larger numbers leave single precision
LONGEST_STEP = 1e3  # strengths, radii: no decoder has seen anything a thousand such steps away


def texts(value: Iterable[str], name: str = "texts") -> list[str]:
    """Returns sentences as a list.

    Raises:
        UserError: one bare string, whose characters would pass for sentences; no list; or an item that is no text.
    """
    if isinstance(value, (str, bytes)):
        raise UserError(f"{name}: got the single text {reprlib.repr(value)}; a list of texts is needed, as [text]")
    if isinstance(value, Mapping) or hasattr(value, "columns"):  # what is listed of a table are its columns' names
        raise UserError(f"{name}: got a {type(value).__name__}; name its column of texts, as table['text']")
    try:
        found = list(value)
    except TypeError:
        raise UserError(f"{name}: got {reprlib.repr(value)}; a list of texts is needed") from None
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}: item {place} is {reprlib.repr(text)}; each must be a text")
    return found


def labels(value: Iterable[Hashable], count: int) -> list[Any]:
    """Returns a label a sentence; those of an array, a tensor or a series are its plain values.

    Raises:
        UserError: no list, another number of labels than `count` sentences have, or one that is a list itself.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value  # tensors that hold the same are not equal labels
    if isinstance(plain, (str, bytes)) or not isinstance(plain, Iterable):
        raise UserError(f"labels: got {reprlib.repr(value)}; a list with a label for each sentence is needed")
    found = list(plain)
    if len(found) != count:
        raise UserError(f"labels: got {len(found)} for {count} sentences; each has one")
    for place, label in enumerate(found):
        if not isinstance(label, Hashable):
            raise UserError(f"labels: item {place} is {reprlib.repr(label)}; a text or a number is needed")
    return found


def sentence(value: str, name: str) -> str:
    """Returns a sentence that something is to be made of.

    Raises:
        UserError: no text, or an empty one, of which the model would invent something.
    """
    if not isinstance(value, str):
        raise UserError(f"{name}: got {reprlib.repr(value)}; a sentence is needed")
    if not value.strip():
        raise UserError(f"{name}: is empty; a sentence is needed")
    return value


def latents(value: Any, width: int) -> Tensor:
    """Returns latents as float32, (N, width).

    Raises:
        UserError: no numbers, another shape, or numbers that are not finite or too large to be worked with.
    """
    try:
        z = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"z: got {reprlib.repr(value)}; numbers of shape (N, {width}) are needed") from error
    if z.dim() != 2 or z.shape[1] != width:
        raise UserError(f"z: got shape {tuple(z.shape)}; it must be (N, {width})")
    wrong = ~(z.abs() <= FARTHEST)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise UserError(
            f"z: row {row} holds {float(z[row, column]):g}; NaN, infinite numbers and those beyond {FARTHEST:g} "
            "cannot be decoded"
        )
    return z


def count(value: Any, name: str, least: int = 0, most: int = MOST) -> int:
    """Returns a whole number.

    Raises:
        UserError: no whole number, or one out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name}: got {reprlib.repr(value)}; it must be a whole number") from None
    if number < least:
        raise UserError(f"{name}: got {number}; it must be {least} or more")
    if number > most:
        raise UserError(f"{name}: got {number}; it must be at most {most:,}")
    return number


def seed(value: Any) -> int | None:
    """Returns a seed, or None where there is none.

    Raises:
        UserError: no whole number, or one that a random stream cannot start from.
    """
    return None if value is None else count(value, "seed", 1 - 2**63, 2**63 - 1)


def size(value: Any, name: str, least: float = -LONGEST_STEP, most: float = LONGEST_STEP) -> float:
    """Returns a number within a range, ends included.

    Raises:
        UserError: no number, or one out of range.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}: got {reprlib.repr(value)}; it must be a number") from None
    if not least <= number <= most:  # not a number is in no range
        raise UserError(f"{name}: got {number:g}; it must be finite, from {least:g} to {most:g}")
    return number


def device(name: str | torch.device) -> torch.device:
    """Returns the device of that name.

    Raises:
        UserError: the machine has no such device.
    """
    try:
        found = torch.device(name)
        if float(torch.zeros(1, device=found)):  # asked for its value, which "meta" has none of
            raise RuntimeError("a zero that is none")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device: got {str(name)!r}, which this machine cannot use; cpu always works") from error
    return found
