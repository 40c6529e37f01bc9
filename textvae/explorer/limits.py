"""What one visitor may ask for."""

from __future__ import annotations

import reprlib
import threading
import time
from collections import deque
from collections.abc import Iterable

from textvae.errors import UserError, suggest

CHARACTERS = 500  # of a text
SENTENCES = 50  # of an answer
ANSWERS, SECONDS = 60, 10.0  # a client may have so many answers in so many seconds
CLIENTS = 10_000  # remembered at most


def text(value: object, name: str) -> str:
    """Returns the text as the model may read it: one line, not empty, at most `CHARACTERS` long.

    Args:
        value: of a field.
        name: of the field.

    Raises:
        UserError: names the field.
    """
    if not isinstance(value, str | None):
        raise UserError(f"{name}: got {reprlib.repr(value)}; a sentence is needed")
    line = " ".join((value or "").replace("\0", " ").split())
    if not line:
        raise UserError(f"{name}: is empty; type a sentence")
    if len(line) > CHARACTERS:
        raise UserError(f"{name}: has {len(line):,} characters; {CHARACTERS} at most")
    return line


def number(value: object, name: str, least: float, most: float) -> float:
    """Returns the number if it lies in its range, ends included. A field that was cleared holds None.

    Args:
        value: of a field.
        name: of the field.
        least: the smallest that is allowed.
        most: the largest.

    Raises:
        UserError: names the field, what it holds and what it may hold.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        said = f"{name}: got {reprlib.repr(value)}; a number from {least:.10g} to {most:.10g} is needed"
        raise UserError(said) from None
    if not least <= found <= most:
        raise UserError(f"{name}: got {found:.10g}; it must be from {least:.10g} to {most:.10g}")
    return found


def choice(value: object, name: str, known: Iterable[str]) -> str:
    """Returns the value if it is one of the known.

    Args:
        value: of a field.
        name: of the field.
        known: what it may hold.

    Raises:
        UserError: names the field, what it holds and what it may hold.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name}: got {reprlib.repr(value)}{suggest(reprlib.repr(value), known)}")
    return value


class Rate:
    """Counts the answers of each client; more than `answers` in `seconds` are refused.

    Args:
        answers: allowed to one client.
        seconds: the span they are counted over.
    """

    def __init__(self, answers: int = ANSWERS, seconds: float = SECONDS) -> None:
        self.answers, self.seconds = answers, seconds
        self.seen: dict[str, deque[float]] = {}
        self.lock = threading.Lock()

    def take(self, client: str, now: float | None = None) -> None:
        """Counts one answer.

        Args:
            client: whose.
            now: in seconds of any clock that only rises; the monotonic one where absent.

        Raises:
            UserError: the client has had too many.
        """
        now = time.monotonic() if now is None else now
        with self.lock:
            if len(self.seen) >= CLIENTS and client not in self.seen:
                self.seen.pop(next(iter(self.seen)))
            times = self.seen.setdefault(client, deque())
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= self.answers:
                raise UserError(f"more than {self.answers} answers in {self.seconds:g} seconds; wait a little")
            times.append(now)
