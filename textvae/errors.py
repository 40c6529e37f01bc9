"""Errors a person can act on: where, what was found, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake of the person at the keyboard; the shell prints it without a traceback (exit code 2)."""

    exit_code = 2


class RecipeError(UserError):
    """Everything that is wrong with one recipe, all at once.

    Args:
        problems: one message a problem, each opening with its key path.
        source: the file (or other origin) the recipe was read from.
    """

    def __init__(self, problems: Sequence[str], source: str = "recipe") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class CorpusError(UserError):
    """A corpus that cannot be read as its recipe says."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained or read."""


class CheckpointError(UserError):
    """A run folder or checkpoint that is missing, damaged or made for another recipe."""


class TrainingError(UserError):
    """A training that cannot start or go on (numbers that are not finite, a folder in use)."""


class InfiniteError(TrainingError):
    """A divergence that is infinite between the distributions it has met."""


class Interrupted(TrainingError):
    """The training was told to stop, and has saved itself."""

    exit_code = 130  # as a shell counts an interruption


class MissingExtraError(UserError, ImportError):
    """An optional library that is not installed.

    Args:
        library: what could not be imported.
        extra: the extra of `textvae` that brings it.
        purpose: what it is needed for, as the end of "needed ...".
    """

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        named = f"pip install 'textvae[{extra}]' (in a clone: '.[{extra}]')"
        super().__init__(f"{library} is needed {purpose}; install it with: {named}")


def suggest(name: object, known: Iterable[object]) -> str:
    """Returns "; known: a, b. Did you mean 'a'?" for an unknown name, the question only where one is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    question = f". Did you mean {near[0]!r}?" if near else ""
    return f"; known: {', '.join(known)}{question}"
