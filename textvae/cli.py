"""The shell: `textvae train | sample | interpolate | reconstruct | encode | score | evaluate | recipe`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from textvae.errors import UserError

DESCRIPTION = "Variational autoencoders over text: train, sample, interpolate, and numbers that can be trusted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 2 for a user's mistake, 130 when interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and not any(argument.startswith("-") for argument in rest):
        # argparse gives up a list of positionals at the first option: `train R --out RUN key=value`.
        options.overrides = [*options.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        cast(Callable[[argparse.Namespace], None], options.run_command)(options)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"textvae: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 2
    except BrokenPipeError:
        # The reader left (`| head`); python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("textvae: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"textvae: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="textvae", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(commands, "train", _train, "train a recipe into a run folder")
    train.add_argument("recipe", help="a YAML file: one experiment")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="as training.max_steps=1000")
    train.add_argument("--out", metavar="RUN", help="the run folder (runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on exactly where the run stopped")
    train.add_argument("--processes", type=int, metavar="N", help="processes (all GPUs, or 1 on the CPU)")
    train.add_argument("--quiet", action="store_true", help="print nothing but warnings")

    sample = _command(commands, "sample", _sample, "draw sentences from the prior", run=True)
    sample.add_argument("-n", type=int, default=10, help="how many (10)")
    _decoding(sample)

    interpolate = _command(commands, "interpolate", _interpolate, "walk between two sentences", run=True)
    interpolate.add_argument("a", help="the first sentence")
    interpolate.add_argument("b", help="the last sentence")
    interpolate.add_argument("--steps", type=int, default=7, help="sentences on the path, ends counted (7)")
    interpolate.add_argument("--path", choices=["linear", "spherical"], default="linear", help="(linear)")
    _decoding(interpolate)

    for name, function, text in (
        ("reconstruct", _reconstruct, "decode each line from its own latent"),
        ("encode", _encode, "print each line's posterior mean"),
        ("score", _score, "print each line's -ELBO in nats, its parts and its perplexity"),
    ):
        command = _command(commands, name, function, text, run=True)
        command.add_argument("file", nargs="?", default="-", help="lines of text (standard input)")
        if name == "reconstruct":
            _decoding(command)
        if name == "score":
            command.add_argument("--iw-samples", type=int, help="adds the importance-weighted NLL")
            command.add_argument("--seed", type=int, default=0, help="of the draws of z (0)")

    evaluate = _command(commands, "evaluate", _evaluate, "compute every figure on a part of the corpus", run=True)
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="as data.files={test: mine.txt}")
    evaluate.add_argument("--split", default="test", help="train, validation or test (test)")
    evaluate.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    evaluate.add_argument("--samples", type=int, default=0, metavar="N", help="figures of N samples, too")
    evaluate.add_argument("--paths", type=int, default=0, metavar="N", help="figures of N interpolations, too")
    evaluate.add_argument("--molecules", action="store_true", help="figures of the samples as SMILES, too")

    fit = _command(commands, "fit-prior", _fit_prior, "fit a prior to a run's latents, for sampling", run=True)
    fit.add_argument("file", nargs="?", help="lines of text (the run's training part)")
    fit.add_argument("--kind", default="gaussian", help="gaussian, mixture or flow (gaussian)")
    fit.add_argument("--components", type=int, default=10, help="of a mixture (10)")
    fit.add_argument("--sentences", type=int, default=20_000, help="of the training part at most (20000)")
    fit.add_argument("--seed", type=int, default=0, help="of the fit (0)")

    parts = _command(commands, "parts", _parts, "list what a recipe can name: kinds, options, papers")
    parts.add_argument("family", nargs="?", help="a family or key path, as schedule or objective.* (all)")
    parts.add_argument("--json", action="store_true", help="one JSON object a line")

    recipe = commands.add_parser("recipe", help="check and describe recipes")
    actions = recipe.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = _command(actions, "check", _check, "say everything that is wrong with a recipe")
    show = _command(actions, "show", _show, "print a recipe with every default written out")
    for command in (check, show):
        command.add_argument("recipe")
        command.add_argument("overrides", nargs="*", metavar="key=value")
    _command(actions, "schema", _schema, "print the JSON schema of a recipe, for editors")
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], None], text: str, *, run: bool = False
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run_command=function)
    if run:
        command.add_argument("run", metavar="RUN", help="a run folder")
        command.add_argument("--json", action="store_true", help="one JSON object a line")
        command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (cpu)")
        command.add_argument("--trust-code", action="store_true", help="import classes the recipe names by dotted path")
    return command


def _decoding(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="repeats a result")
    command.add_argument("--method", choices=["greedy", "sample", "beam"])
    command.add_argument("--temperature", type=float)
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--beam-size", type=int)
    command.add_argument("--max-length", type=int, help="tokens, </s> counted")
    command.add_argument("--ban-unk", action="store_true", default=None, help="never generate <unk>")


def _decoding_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "temperature", "top_k", "top_p", "beam_size", "max_length", "ban_unk")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _train(options: argparse.Namespace) -> None:
    recipe = _checked_recipe(options)
    from textvae.training import launch, train

    folder = Path(options.out or Path("runs") / recipe.name)
    if launch.wanted(options.processes):
        launch.relaunch(options.processes)
        return
    train(recipe, folder, resume=options.resume, quiet=options.quiet)


def _sample(options: argparse.Namespace) -> None:
    vae = _load(options)
    texts = vae.sample(options.n, seed=options.seed, **_decoding_options(options))
    _print(options, [{"text": text} for text in texts], lambda row: row["text"])


def _interpolate(options: argparse.Namespace) -> None:
    vae = _load(options)
    texts = vae.interpolate(
        options.a, options.b, options.steps, path=options.path, seed=options.seed, **_decoding_options(options)
    )
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
    vae, texts = _load(options), _lines(options.file)
    scores = vae.score(texts, iw_samples=options.iw_samples, seed=options.seed)
    rows = [{"text": text, **score} for text, score in zip(texts, scores)]
    _print(options, rows, lambda row: f"{row.get('nll_iw', row['nll_elbo']):.4f}\t{row['text']}")


def _evaluate(options: argparse.Namespace) -> None:
    vae = _load(options)
    recipe = None
    if options.overrides:
        from textvae import recipe_file
        from textvae.checkpoint import RECIPE

        recipe = recipe_file.load(Path(options.run) / RECIPE, options.overrides)
    result = vae.evaluate(
        options.split,
        recipe=recipe,
        seed=options.seed,
        samples=options.samples,
        paths=options.paths,
        molecules=options.molecules,
    )
    if options.json:
        print(json.dumps(result))
        return
    rows = list(_flat(result))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _flat(result: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Each figure with its key path, as text."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                yield f"{path}{name}", ", ".join(f"{key} {_shown(item)}" for key, item in row.items())
        else:
            yield f"{path}{name}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def _fit_prior(options: argparse.Namespace) -> None:
    from textvae import checkpoint

    vae = _load(options)
    texts = _lines(options.file) if options.file else vae.corpus_texts("train", options.sentences)
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
    from textvae import recipe_file

    recipe = recipe_file.load(options.recipe, options.overrides)
    from textvae import build

    build.check(recipe, options.recipe)
    return recipe


def _load(options: argparse.Namespace) -> Any:
    from textvae.api import load

    return load(options.run, device=options.device, trust_code=options.trust_code)


def _lines(file: str) -> list[str]:
    """The lines of a file or of standard input; an empty line is an empty sentence, so that rows stay in step."""
    if file == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        data, name = Path(file).read_bytes(), file
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: is not UTF-8 (byte {error.start + 1})") from error
    return texts


def _print(options: argparse.Namespace, rows: Iterable[dict[str, Any]], plain: Callable[[dict[str, Any]], str]) -> None:
    for row in rows:
        # One row, one line, also where a character model wrote a line break.
        line = json.dumps(row, ensure_ascii=False) if options.json else plain(row).replace("\n", "\\n")
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.buffer.flush()


def _version() -> str:
    from textvae import __version__

    return f"textvae {__version__}"
