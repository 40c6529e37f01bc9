"""The shell's commands for other runtimes: `textvae export` and `textvae bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

FORMATS = ("onnx", "torch", "int8")


def add_parsers(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands to the shell's parser.

    Args:
        commands: argparse's subparsers.
        command: `textvae.cli_parser`'s maker of a command.
    """
    export = command(commands, "export", "export", "write a run for another runtime: ONNX or torch.export", run=True)
    export.add_argument("--format", choices=FORMATS, default="onnx", help="(onnx)")
    export.add_argument("--out", metavar="DIR", required=True, help="a new folder, or one of the same format")

    bench = command(commands, "bench", "bench", "what PyTorch and each exported form give on this machine", run=True)
    bench.add_argument("file", nargs="?", help="lines of text (the run's test part, or validation)")
    bench.add_argument("--sentences", type=int, default=1000, metavar="N", help="at most (1000)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="by turns (5)")
    bench.add_argument("--batch", type=int, metavar="N", help="sentences handed over at once (all)")


def _export(options: argparse.Namespace) -> None:
    from textvae.api import load
    from textvae.export import export as write

    vae = load(options.run, device=options.device, trust_code=options.trust_code)
    folder = write(vae, options.out, format=options.format)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    if options.json:
        print(json.dumps({"folder": str(folder), "format": options.format, "bytes": files}))
    else:
        sys.stdout.write("".join(f"{size:>12,}  {folder / name}\n" for name, size in files.items()))


def _bench(options: argparse.Namespace) -> None:
    from textvae.api import load
    from textvae.bench import bench as measure
    from textvae.bench import table
    from textvae.cli import MOST, _at_most, _lines
    from textvae.errors import UserError

    for name in ("sentences", "rounds", "batch"):
        _at_most(f"--{name}", getattr(options, name), MOST)
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name}: got {getattr(options, name)}; it must be 1 or more")
    lines = _lines(options.file) if options.file else None
    if lines == []:
        raise UserError(f"{options.file}: has no line of text to measure with")
    vae = load(options.run, device=options.device, trust_code=options.trust_code)
    if lines is None:
        try:
            lines = vae.corpus_texts("test", options.sentences)
        except UserError:  # own text has no test part; a corpus that cannot be read says so again
            lines = vae.corpus_texts("validation", options.sentences)
    texts = lines
    rows = measure(vae, texts[: options.sentences], rounds=options.rounds, batch=options.batch)
    sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows) if options.json else table(rows))


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {"bench": _bench, "export": _export}
