"""The shell: `textvae train | sample | interpolate | reconstruct | encode | score | evaluate | recipe`."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from textvae import cli_evaluate, cli_explore, cli_export, cli_toolbox
from textvae.cli_parser import parser as build_parser
from textvae.errors import Interrupted, UserError

PATIENCE_S = 5.0  # a launcher ends the others well within it
FITTED_TO = 20_000  # sentences of the training part, by fit-prior
MOST = 10**8  # samples, steps: beyond that a number is a slip of the finger
OVERRIDE = re.compile(r"--[a-z_]+(\.\w+)*=")
OUT_OF_MEMORY = (
    "out of memory; take a smaller training.batch_size, more training.accumulation, or smaller sizes in model"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 2 for a user's mistake, 130 when interrupted."""
    _open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = build_parser(_version()).parse_known_args(given)
    if rest:
        # argparse gives up on positionals that may be absent at the first option: `train R --out RUN key=value`.
        dashed = [word for word in rest if hasattr(options, "overrides") and OVERRIDE.match(word)]
        if dashed:
            options.parser.error(f"{dashed[0]}: an override has no dashes: {dashed[0].lstrip('-')}")
        words = len(options.parser.prog.split()) - 1
        options = options.parser.parse_intermixed_args(given[words:])
    try:
        _at_most("--seed", getattr(options, "seed", None), 2**63 - 1)
        if not _shared_out(options):
            COMMANDS[options.run_command](options)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if _speaks(error):
            _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader left (`| head`); python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        _complain(f"{OUT_OF_MEMORY} ({str(error).partition(chr(10))[0] or 'MemoryError'})")
        return 2


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # where nobody reads it, the exit code says it
        print(f"textvae: {text}", file=sys.stderr)


def _open_streams() -> None:
    """Gives a program that was started without one of its streams an empty one, and names of any letters a way out."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open to the end
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _speaks(error: UserError) -> bool:
    """Whether this process has to say why it ends: of several, the first does, and what it does not say, another."""
    if os.environ.get("RANK", "0") == "0":
        return True
    if not isinstance(error, Interrupted):
        time.sleep(PATIENCE_S)  # nearly always the first has the same to say, and its end is this one's
    return not isinstance(error, Interrupted)


def _is_of_memory(error: Exception) -> bool:
    """Whether the machine, or the GPU, had less memory than was asked for; torch says so in words alone."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _at_most(name: str, value: int | None, largest: int = MOST) -> None:
    if value is not None and abs(value) > largest:
        raise UserError(f"{name}: got {value}; should be at most {largest:,}")


def _decoding_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "temperature", "top_k", "top_p", "beam_size", "max_length", "ban_unk")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _shared_out(options: argparse.Namespace) -> bool:
    """Whether the command was left to processes that it has started, and that have done it."""
    processes = getattr(options, "processes", None)
    if processes is None or options.run_command == "train":  # which starts its own, one for each GPU
        return False
    from textvae import launch

    _at_most("--processes", processes, 1024)
    if getattr(options, "file", None) == "-":
        raise UserError("--processes: several cannot share standard input; name a file")
    if not launch.wanted(processes):
        return False
    if ":" in options.device:
        raise UserError(f"--device: got {options.device}; several processes take a GPU each: --device cuda")
    _load(options)  # a run that cannot be loaded is one line here, and one from each process there
    launch.relaunch(processes, gpus=options.device.startswith("cuda"))
    return True


def _train(options: argparse.Namespace) -> None:
    recipe = _checked_recipe(options)
    from textvae import launch
    from textvae.training import train

    _at_most("--processes", options.processes, 1024)
    if options.out == "":
        raise UserError("--out: got '', which names no folder; leave it out for runs/NAME")
    if not options.out and (not recipe.name.strip(". ") or set("/\\\0") & set(recipe.name)):
        raise UserError(f"name: got {recipe.name!r}, which names no folder within runs; give another, or --out")
    folder = Path(options.out or Path("runs") / recipe.name)
    if launch.wanted(options.processes):
        launch.relaunch(options.processes, gpus=launch.has_gpu(), then=launch.GO_ON)
        return
    launch.end_with_launcher()
    atexit.register(launch.leave)
    train(recipe, folder, resume=options.resume, quiet=options.quiet)


def _sample(options: argparse.Namespace) -> None:
    cli_toolbox.how_many(options.n)
    vae = _load(options)
    texts = vae.sample(options.n, seed=options.seed, **_decoding_options(options))
    _print(options, [{"text": text} for text in texts], lambda row: row["text"])


def _interpolate(options: argparse.Namespace) -> None:
    _at_most("--steps", options.steps)
    if options.corpus and options.path != "data":
        raise UserError("--corpus: says nothing without --path data")
    vae = _load(options)
    if options.path == "data":
        texts = cli_toolbox.along_data(vae, options)
    else:
        texts = vae.interpolate(
            options.a, options.b, options.steps, path=options.path, seed=options.seed, **_decoding_options(options)
        )
    cli_toolbox.say_unknown(vae, [options.a, options.b])
    _print(options, [{"step": i, "text": text} for i, text in enumerate(texts)], lambda row: row["text"])


def _reconstruct(options: argparse.Namespace) -> None:
    vae, texts = _load(options), _lines(options.file)
    results = vae.reconstruct(texts, seed=options.seed, **_decoding_options(options))
    rows = [{"text": text, "reconstruction": result} for text, result in zip(texts, results)]
    _print(options, rows, lambda row: row["reconstruction"])


def _encode(options: argparse.Namespace) -> None:
    vae, texts = _load(options), _lines(options.file)
    means, scales = vae.encode_distribution(texts)
    rows = [
        {"text": text, "mean": mean.tolist(), "scale": scale.tolist()}
        for text, mean, scale in zip(texts, means, scales)
    ]
    _print(options, rows, lambda row: " ".join(f"{value:.6g}" for value in row["mean"]))


def _score(options: argparse.Namespace) -> None:
    _at_most("--iw-samples", options.iw_samples)
    vae, texts = _load(options), _lines(options.file)
    scores = vae.score(texts, iw_samples=options.iw_samples, seed=options.seed)
    rows = [{"text": text, **score} for text, score in zip(texts, scores)]
    _print(options, rows, lambda row: f"{row.get('nll_iw', row['nll_elbo']):.4f}\t{row['text']}")


def _fit_prior(options: argparse.Namespace) -> None:
    from textvae import checkpoint

    vae = _load(options)
    if options.sentences is not None and options.sentences < 1:
        raise UserError(f"--sentences: got {options.sentences}; it must be 1 or more")
    if options.file:
        texts = _lines(options.file)[: options.sentences]
    else:
        texts = vae.corpus_texts("train", FITTED_TO if options.sentences is None else options.sentences)
    prior = vae.fit_prior(texts, kind=options.kind, components=options.components, seed=options.seed)
    checkpoint.save_prior(options.kind, prior, Path(options.run))
    row = {"kind": options.kind, "sentences": len(texts), "run": options.run}
    _print(options, [row], lambda row: f"{row['kind']} prior fitted to {row['sentences']:,} sentences; sample uses it")


def _parts(options: argparse.Namespace) -> None:
    from textvae.build import FAMILIES
    from textvae.parts import parts, table

    rows = parts(FAMILIES, options.family)
    if options.json:
        _print(options, rows, str)
    else:
        sys.stdout.write(table(rows, meanings=options.family is not None) + "\n")


def _check(options: argparse.Namespace) -> None:
    _checked_recipe(options)
    print(f"{options.recipe}: a valid recipe")


def _show(options: argparse.Namespace) -> None:
    from textvae.recipe_file import dump

    print(dump(_checked_recipe(options)), end="")


def _schema(options: argparse.Namespace) -> None:
    from textvae.build import FAMILIES
    from textvae.recipe_schema import json_schema

    print(json.dumps(json_schema(FAMILIES), indent=2))


def _checked_recipe(options: argparse.Namespace) -> Any:
    from textvae import build, recipe_file

    # Checked while the layers are known, so that a message says which file, or the command line, set the key.
    return recipe_file.load(
        options.recipe, options.overrides, check=build.problems, check_sections=build.section_problems
    )


def _load(options: argparse.Namespace) -> Any:
    """The run, in a group of processes with the others', of which the first alone prints."""
    from textvae import launch
    from textvae.api import load

    # Other commands are not for several processes: there each would do all of the work.
    together = "processes" in options and launch.joined(gpus=options.device.startswith("cuda"))
    return load(options.run, device=options.device, trust_code=options.trust_code, together=together)


def _lines(file: str) -> list[str]:
    """The lines of a file or of standard input; an empty line is an empty sentence, so that rows stay in step."""
    from textvae.text.files import COMPRESSIONS, decoded, sentences, without_newline

    if file != "-" and Path(file).suffix.lower() in COMPRESSIONS:
        return [text or "" for text in sentences(file, "text", "text")]
    if file == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        data, name = Path(file).read_bytes(), file
    return [without_newline(line) for line in decoded(io.BytesIO(data), name)]


def _print(options: argparse.Namespace, rows: Iterable[dict[str, Any]], plain: Callable[[dict[str, Any]], str]) -> None:
    for row in rows:
        # One row, one line, also where a character model wrote a line break.
        line = json.dumps(_without_nan(row), ensure_ascii=False) if options.json else plain(row).replace("\n", "\\n")
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.buffer.flush()


def _without_nan(value: Any) -> Any:
    """Null for a number that is none (of weights that have diverged): JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version() -> str:
    from textvae import __version__

    return f"textvae {__version__}"


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "check": _check,
    "encode": _encode,
    "fit_prior": _fit_prior,
    "interpolate": _interpolate,
    "parts": _parts,
    "reconstruct": _reconstruct,
    "sample": _sample,
    "schema": _schema,
    "score": _score,
    "show": _show,
    "train": _train,
    **cli_toolbox.COMMANDS,
    **cli_evaluate.COMMANDS,
    **cli_explore.COMMANDS,
    **cli_export.COMMANDS,
}
