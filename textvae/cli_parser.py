"""The words of the shell: commands, options and their help. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from textvae import cli_explore, cli_export, cli_toolbox

DESCRIPTION = "Variational autoencoders over text: train, sample, interpolate, and numbers that can be trusted."


def parser(version: str) -> argparse.ArgumentParser:
    """Returns the parser of the whole shell; `run_command` of what it parses names the command."""
    whole = argparse.ArgumentParser(prog="textvae", description=DESCRIPTION, allow_abbrev=False)
    whole.add_argument("--version", action="version", version=version)
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(commands, "train", "train", "train a recipe into a run folder")
    train.add_argument("recipe", help="a YAML file: one experiment")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="as training.max_steps=1000", default=[])
    train.add_argument("--out", metavar="RUN", help="the run folder (runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on exactly where the run stopped")
    train.add_argument("--processes", type=int, metavar="N", help="processes (all GPUs, or 1 on the CPU)")
    train.add_argument("--quiet", action="store_true", help="print nothing but warnings")

    sample = _command(commands, "sample", "sample", "draw sentences from the prior", run=True)
    sample.add_argument("-n", type=int, default=10, help="how many (10)")
    _decoding(sample)
    _processes(sample)

    interpolate = _command(commands, "interpolate", "interpolate", "walk between two sentences", run=True)
    interpolate.add_argument("a", help="the first sentence")
    interpolate.add_argument("b", help="the last sentence")
    interpolate.add_argument("--steps", type=int, default=7, help="sentences on the path, ends counted (7)")
    interpolate.add_argument("--path", choices=["linear", "spherical", "data"], default="linear", help="(linear)")
    interpolate.add_argument("--corpus", metavar="FILE", help="lines that the path data keeps to (the training part)")
    _decoding(interpolate)

    for name, function, text in (
        ("reconstruct", "reconstruct", "decode each line from its own latent"),
        ("encode", "encode", "print each line's posterior mean"),
        ("score", "score", "print each line's -ELBO in nats, its parts and its perplexity"),
    ):
        command = _command(commands, name, function, text, run=True)
        command.add_argument("file", nargs="?", default="-", help="lines of text (standard input)")
        _processes(command)
        if name == "reconstruct":
            _decoding(command)
        if name == "score":
            command.add_argument("--iw-samples", type=int, help="adds the importance-weighted NLL")
            command.add_argument("--seed", type=int, default=0, help="of the draws of z (0)")

    evaluate = _command(commands, "evaluate", "evaluate", "compute every figure on a part of the corpus", run=True)
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="as data.limit={test: 1000}", default=[])
    evaluate.add_argument("--split", default="test", help="train, validation or test (test)")
    evaluate.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    _processes(evaluate)
    evaluate.add_argument("--samples", type=int, default=0, metavar="N", help="figures of N samples, too")
    evaluate.add_argument("--paths", type=int, default=0, metavar="N", help="figures of N interpolations, too")
    evaluate.add_argument(
        "--save", action="store_true", help="keep everything in the run folder: JSON for compare, a page, a table"
    )
    evaluate.add_argument("--anneal", type=int, default=0, metavar="N", help="check the bound on N sentences, too")
    evaluate.add_argument("--molecules", action="store_true", help="figures of the samples as SMILES, too")
    evaluate.add_argument(
        "--language", type=int, default=0, metavar="N", help="forward and reverse perplexity of N samples, too"
    )
    evaluate.add_argument("--language-steps", type=int, metavar="N", help="of each language model's training (4000)")
    _labelled(evaluate)

    fit = _command(commands, "fit-prior", "fit_prior", "fit a prior to a run's latents, for sampling", run=True)
    fit.add_argument("file", nargs="?", help="lines of text (the run's training part)")
    fit.add_argument("--kind", default="gaussian", help="gaussian, mixture or flow (gaussian)")
    fit.add_argument("--components", type=int, default=10, help="of a mixture (10)")
    fit.add_argument("--sentences", type=int, help="at most (all of FILE, 20000 of the training part)")
    fit.add_argument("--seed", type=int, default=0, help="of the fit (0)")

    cli_toolbox.add_parsers(commands, _command, _decoding)
    cli_explore.add_parsers(commands, _command)
    cli_export.add_parsers(commands, _command)

    parts = _command(commands, "parts", "parts", "list what a recipe can name: kinds, options, papers")
    parts.add_argument("family", nargs="?", help="a family or key path, as schedule or objective.* (all)")
    parts.add_argument("--json", action="store_true", help="one JSON object a line")

    compare = _command(commands, "compare", "compare", "hold runs against the first, on the same sentences")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="evaluated with --save")
    compare.add_argument("--split", default="test", help="train, validation or test (test)")
    compare.add_argument(
        "--figure", choices=["nll_iw", "nll_elbo", "kl", "reconstruction"], default="nll_iw", help="(nll_iw)"
    )
    compare.add_argument("--markdown", action="store_true", help="a Markdown table")
    compare.add_argument("--json", action="store_true", help="one JSON object a line")

    recipe = commands.add_parser("recipe", help="check and describe recipes")
    actions = recipe.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = _command(actions, "check", "check", "say everything that is wrong with a recipe")
    show = _command(actions, "show", "show", "print a recipe with every default written out")
    for command in (check, show):
        command.add_argument("recipe", help="a YAML file: one experiment")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="as training.max_steps=1000", default=[])
    _command(actions, "schema", "schema", "print the JSON schema of a recipe, for editors")
    return whole


def _command(commands: Any, name: str, function: str, text: str, *, run: bool = False) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run_command=function, parser=command)
    if run:
        command.add_argument("run", metavar="RUN", help="a run folder")
        command.add_argument("--json", action="store_true", help="one JSON object a line")
        command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (cpu)")
        command.add_argument("--trust-code", action="store_true", help="import classes the recipe names by dotted path")
    return command


def _labelled(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "labelled files", "CSV, TSV, JSON or Parquet. Columns by name, or by number from 1 where no line names them."
    )
    group.add_argument("--probe", nargs=2, metavar=("TRAIN", "TEST"), help="probes of the latents, trained and tested")
    group.add_argument("--probe-columns", nargs=2, metavar=("TEXT", "LABEL"), help="(text label)")
    group.add_argument(
        "--per-label", type=_sizes, metavar="N,N", help="training sentences a label, and all (10,100,all)"
    )
    group.add_argument("--pairs", metavar="FILE", help="does similarity of latents go with people's scores of pairs?")
    group.add_argument(
        "--pairs-columns", nargs=3, metavar=("TEXT", "TEXT", "SCORE"), help="(sentence1 sentence2 score)"
    )
    group.add_argument(
        "--labelled-format", choices=["text", "csv", "tsv", "json", "parquet"], help="where their names do not tell it"
    )


def _sizes(value: str) -> list[int | None]:
    sizes: list[int | None] = []
    for size in value.split(","):
        if size != "all" and not (size.isdecimal() and int(size)):
            raise argparse.ArgumentTypeError(f"got {value!r}; numbers above 0 or 'all', as 10,100,all")
        sizes.append(None if size == "all" else int(size))
    return sizes


def _processes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--processes", type=int, metavar="N", help="share the work out (1)")


def _decoding(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="repeats a result")
    command.add_argument("--method", choices=["greedy", "sample", "beam"])
    command.add_argument("--temperature", type=float)
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--beam-size", type=int)
    command.add_argument("--max-length", type=int, help="tokens, </s> counted")
    command.add_argument("--ban-unk", action="store_true", default=None, help="never generate <unk>")
