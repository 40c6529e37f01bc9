"""The shell's `textvae explore`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any


def add_parsers(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command to the shell's parser.

    Args:
        commands: argparse's subparsers.
        command: `textvae.cli_parser`'s maker of a command.
    """
    explore = command(commands, "explore", "explore", "look at a run in the browser", run=True)
    explore.add_argument("other", nargs="?", metavar="OTHER", help="a second run, to be held beside the first")
    explore.add_argument("--corpus", metavar="FILE", help="lines of text for the map (the run's test part)")
    explore.add_argument("--labelled", metavar="FILE", help="texts with labels: the map's colours, and attributes")
    explore.add_argument("--columns", nargs=2, metavar=("TEXT", "LABEL"), help="of the labelled file (text label)")
    explore.add_argument("--sentences", type=int, default=2000, metavar="N", help="on the map at most (2000)")
    explore.add_argument("--host", default="127.0.0.1", help="whom to listen to (127.0.0.1: this machine alone)")
    explore.add_argument("--port", type=int, help="(7860, or the next that is free)")
    explore.add_argument("--open", action="store_true", help="open the page in the browser")


def _explore(options: argparse.Namespace) -> None:
    from textvae.api import load
    from textvae.cli import MOST, _at_most, _lines, _print
    from textvae.errors import UserError
    from textvae.evaluation import labelled
    from textvae.explorer import launch
    from textvae.explorer.views import spread

    _at_most("--sentences", options.sentences, MOST)
    if options.sentences < 1:
        raise UserError(f"--sentences: got {options.sentences}; it must be 1 or more")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise UserError(f"--port: got {options.port}; it must be from 1 to 65535")
    if options.corpus and options.labelled:
        raise UserError("--corpus and --labelled: both give the map's sentences; keep one of them")
    settings = {"device": options.device, "trust_code": options.trust_code}
    vae = load(options.run, **settings)
    other = load(options.other, **settings) if options.other else None
    if options.columns and not options.labelled:
        raise UserError("--columns: are of a labelled file (--labelled), and there is none")
    labels: dict[str, list[str]] | None = None
    texts: list[str] | None = None
    if options.labelled:
        found = labelled.load(options.labelled, tuple(options.columns or labelled.PROBE_COLUMNS))
        texts = spread(found.texts, options.sentences)
        labels = {"label": [str(label) for label in spread(found.labels, options.sentences)]}
    elif options.corpus:
        texts = spread([line for line in _lines(options.corpus) if line.strip()], options.sentences)
    launch(
        vae,
        other=other,
        texts=texts,
        labels=labels,
        sentences=options.sentences,
        host=options.host,
        port=options.port,
        browser=options.open,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        ready=(lambda address: _print(options, [{"url": address}], str)) if options.json else None,
    )


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {"explore": _explore}
