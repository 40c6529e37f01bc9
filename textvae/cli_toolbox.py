"""The shell's commands for latents: mix, analogy, shift, perturb, traverse, neighbours, anomaly, sample-label, map."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

FORMATS = ("text", "csv", "tsv", "json", "parquet")
SAID = 10  # unknown words, at most


def add_parsers(
    commands: Any,
    command: Callable[..., argparse.ArgumentParser],
    decoding: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Adds the commands to the shell's parser.

    Args:
        commands: argparse's subparsers.
        command: `textvae.cli_parser`'s maker of a command.
        decoding: adds the options of decoding to one.
    """
    mix = command(commands, "mix", "mix", "decode the weighted mean of sentences", run=True)
    mix.add_argument("texts", nargs="+", metavar="TEXT", help="sentences")
    mix.add_argument("--weights", type=_numbers, metavar="W,W", help="one a sentence, as --weights=2,-1 (equal)")
    mix.add_argument("--path", choices=["linear", "spherical"], default="linear", help="spherical keeps norms (linear)")

    analogy = command(commands, "analogy", "analogy", "what is to C as B is to A", run=True)
    for name in ("a", "b", "c"):
        analogy.add_argument(name, metavar=name.upper())

    shift = command(commands, "shift", "shift", "move each line from one label to another", run=True)
    _labelled(shift)
    shift.add_argument("file", nargs="?", default="-", help="lines of text (standard input)")
    shift.add_argument("--to", required=True, metavar="LABEL", help="the label to go to")
    shift.add_argument("--from", dest="source", metavar="LABEL", help="the one to come from (all others)")
    for parser in (analogy, shift):
        parser.add_argument("--strength", type=float, default=1.0, help="of the step; below 0 leads back (1)")

    perturb = command(commands, "perturb", "perturb", "decode around a sentence", run=True)
    perturb.add_argument("text", metavar="TEXT")
    perturb.add_argument("-n", type=int, default=5, help="how many (5)")
    perturb.add_argument("--radius", type=float, default=1.0, help="in posterior standard deviations (1)")

    traverse = command(commands, "traverse", "traverse", "move one dimension of z, the others held", run=True)
    traverse.add_argument("text", nargs="?", metavar="TEXT", help="gives the other dimensions (zeros)")
    traverse.add_argument("--dimension", type=int, default=0, metavar="D", help="from 0 (0)")
    traverse.add_argument("--steps", type=int, default=7, help="values (7)")
    traverse.add_argument("--low", type=float, default=-3.0, help="the first (-3)")
    traverse.add_argument("--high", type=float, default=3.0, help="the last (3)")

    sample = command(commands, "sample-label", "sample_label", "draw sentences of one label", run=True)
    _labelled(sample)
    sample.add_argument("label", metavar="LABEL")
    sample.add_argument("-n", type=int, default=10, help="how many (10)")
    sample.add_argument("--kind", default="mixture", help="of prior a label: gaussian, mixture or flow (mixture)")
    sample.add_argument("--components", type=int, default=10, help="of a mixture (10)")
    for parser in (mix, analogy, shift, perturb, traverse, sample):
        decoding(parser)

    near = command(commands, "neighbours", "neighbours", "the nearest sentences of a corpus to each line", run=True)
    near.add_argument("corpus", metavar="CORPUS", help="lines of text")
    near.add_argument("file", nargs="?", default="-", help="lines of text (standard input)")
    near.add_argument("-k", type=int, default=5, help="how many of each (5)")
    near.add_argument("--backend", default="exact", help="exact, faiss or hnswlib (exact)")
    near.add_argument("--metric", default="euclidean", help="euclidean or cosine (euclidean)")

    anomaly = command(commands, "anomaly", "anomaly", "how odd each line is beside a corpus, by its ELBO", run=True)
    anomaly.add_argument("reference", metavar="REFERENCE", help="lines of usual text that the run was not trained on")
    anomaly.add_argument("file", nargs="?", default="-", help="lines of text (standard input)")
    anomaly.add_argument("--percentile", type=float, default=99.0, help="of the reference that is usual (99)")
    anomaly.add_argument("--measure", default="token", help="nats a token or a sentence (token)")
    anomaly.add_argument("--tokens", action="store_true", help="each token's nats, too; word(<unk>) is an unknown word")
    anomaly.add_argument("--draws", type=int, default=4, help="of z a sentence (4)")
    anomaly.add_argument("--seed", type=int, default=0, help="of the draws (0)")

    table = command(commands, "map", "map", "write the latents of a corpus as Parquet, with text and label", run=True)
    table.add_argument("corpus", metavar="CORPUS", help="text (labels beside it in .label), CSV, TSV, JSON or Parquet")
    table.add_argument("--out", required=True, metavar="FILE", help="the Parquet file")
    table.add_argument("--column", default="text", help="of the texts (text)")
    table.add_argument("--label-column", metavar="COLUMN", help="of the labels (label, where there is one)")
    table.add_argument("--corpus-format", choices=FORMATS, help="where the name does not tell it")
    table.add_argument("--chunk", type=int, default=1000, metavar="N", help="sentences held at once (1000)")


def _labelled(command: argparse.ArgumentParser) -> None:
    command.add_argument("labelled", metavar="LABELLED", help="text (labels in .label), CSV, TSV, JSON or Parquet")
    command.add_argument(
        "--columns", nargs=2, metavar=("TEXT", "LABEL"), help="by name, or by number from 1 (text label)"
    )
    command.add_argument("--labelled-format", choices=FORMATS, help="where the name does not tell it")


def _numbers(value: str) -> list[float]:
    try:
        return [float(number) for number in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {value!r}; numbers with commas between them, as 1,2,0.5") from None


def say_unknown(vae: Any, texts: Sequence[str]) -> None:
    """Says on standard error which words of a user's sentences the run's vocabulary lacks."""
    from textvae.toolbox import unknown_words

    words = unknown_words(vae, texts)
    more = f" and {len(words) - SAID:,} more" if len(words) > SAID else ""
    if words:
        print(f"textvae: not in the vocabulary, read as <unk>: {', '.join(words[:SAID])}{more}", file=sys.stderr)


def how_many(n: int) -> None:
    """Refuses a number of texts below 1, or one that is a slip of the finger."""
    from textvae.cli import _at_most
    from textvae.errors import UserError

    _at_most("-n", n)
    if n < 1:  # in Python none is a list without texts; at the keyboard it is a slip
        raise UserError(f"-n: got {n}; it must be 1 or more")


def mix(options: argparse.Namespace) -> None:
    """Prints the mixture."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _load, _print

    vae = _load(options)
    text = toolbox.mix(
        vae,
        options.texts,
        options.weights,
        path=options.path,
        seed=options.seed,
        **_decoding_options(options),
    )
    say_unknown(vae, options.texts)
    _print(options, [{"text": text}], lambda row: row["text"])


def analogy(options: argparse.Namespace) -> None:
    """Prints the fourth sentence."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _load, _print

    vae = _load(options)
    text = toolbox.analogy(
        vae,
        options.a,
        options.b,
        options.c,
        strength=options.strength,
        seed=options.seed,
        **_decoding_options(options),
    )
    say_unknown(vae, [options.a, options.b, options.c])
    _print(options, [{"text": text}], lambda row: row["text"])


def shift(options: argparse.Namespace) -> None:
    """Prints each line as it reads with the other label."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _lines, _load, _print

    labelled, texts = _labelled_texts(options), _lines(options.file)
    vae = _load(options)
    vector = toolbox.attribute_vector(vae, *labelled, target=options.to, source=options.source)
    results = toolbox.shift(
        vae, texts, vector, strength=options.strength, seed=options.seed, **_decoding_options(options)
    )
    say_unknown(vae, texts)
    rows = [{"text": text, "result": result} for text, result in zip(texts, results)]
    _print(options, rows, lambda row: row["result"])


def perturb(options: argparse.Namespace) -> None:
    """Prints sentences around one."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _load, _print

    how_many(options.n)
    vae = _load(options)
    texts = toolbox.perturb(
        vae,
        options.text,
        options.n,
        radius=options.radius,
        seed=options.seed,
        **_decoding_options(options),
    )
    say_unknown(vae, [options.text])
    _print(options, [{"text": text} for text in texts], lambda row: row["text"])


def traverse(options: argparse.Namespace) -> None:
    """Prints the values of one dimension and the sentence at each."""
    from textvae import toolbox
    from textvae.cli import _at_most, _decoding_options, _load, _print

    _at_most("--steps", options.steps)
    vae = _load(options)
    found = toolbox.traverse(
        vae,
        options.text,
        options.dimension,
        options.steps,
        low=options.low,
        high=options.high,
        seed=options.seed,
        **_decoding_options(options),
    )
    say_unknown(vae, [options.text or ""])
    rows = [{"value": value, "text": text} for value, text in found]
    _print(options, rows, lambda row: f"{row['value']:+.2f}\t{row['text']}")


def sample_label(options: argparse.Namespace) -> None:
    """Prints samples of one label."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _load, _print
    from textvae.errors import UserError, suggest

    how_many(options.n)
    texts, labels = _labelled_texts(options)
    if options.label not in labels:  # before any prior is fitted
        known = sorted(set(labels))
        raise UserError(f"{options.labelled}: has no label {options.label!r}{suggest(options.label, known)}")
    own = [text for text, label in zip(texts, labels) if label == options.label]
    vae = _load(options)
    priors = toolbox.fit_by_label(
        vae,
        own,
        [options.label] * len(own),
        kind=options.kind,
        components=options.components,
        seed=options.seed or 0,
    )
    samples = priors.sample(vae, options.label, options.n, seed=options.seed, **_decoding_options(options))
    _print(options, [{"label": options.label, "text": text} for text in samples], lambda row: row["text"])


def neighbours(options: argparse.Namespace) -> None:
    """Prints the nearest sentences of a corpus to each line, nearest first."""
    from textvae import toolbox
    from textvae.cli import _lines, _load, _print

    corpus, queries = _lines(options.corpus), _lines(options.file)
    vae = _load(options)
    found = toolbox.nearest(vae, queries, corpus, options.k, backend=options.backend, metric=options.metric)
    say_unknown(vae, queries)
    rows = [
        {"query": query, "rank": rank, "row": row, "distance": distance, "text": corpus[row]}
        for query, near in zip(queries, found)
        for rank, (row, distance) in enumerate(near, start=1)
    ]
    _print(options, rows, lambda row: f"{row['distance']:.4f}\t{row['text']}")


def anomaly(options: argparse.Namespace) -> None:
    """Prints each line's nats, with a mark where it is beyond the threshold."""
    from textvae import toolbox
    from textvae.cli import _at_most, _lines, _load, _print

    _at_most("--draws", options.draws, 1000)
    reference, texts = _lines(options.reference), _lines(options.file)
    vae = _load(options)
    detector = toolbox.AnomalyDetector(
        vae,
        reference,
        percentile=options.percentile,
        measure=options.measure,
        draws=options.draws,
        seed=options.seed,
    )
    rows: list[dict[str, Any]] = []
    for text, found in zip(texts, detector.score(texts)):
        row = {"text": text, **found._asdict(), "threshold": detector.threshold}
        rows.append({**row, "tokens": toolbox.token_nats(vae, text)} if options.tokens else row)
    column = "nats_per_token" if options.measure == "token" else "nats"

    def plain(row: dict[str, Any]) -> str:
        words = " ".join(f"{token}:{nats:.1f}" for token, nats in row["tokens"]) if options.tokens else row["text"]
        return f"{'*' if row['anomalous'] else ' '} {row[column]:.4f}\t{words}"

    _print(options, rows, plain)


def table(options: argparse.Namespace) -> None:
    """Writes the latents and says how many there are."""
    from textvae import toolbox
    from textvae.cli import _load, _print

    vae = _load(options)
    rows = toolbox.rows_of(
        options.corpus,
        column=options.column,
        label_column=options.label_column,
        file_format=options.corpus_format,
    )
    count = toolbox.write_latents(vae, rows, options.out, chunk=options.chunk)
    shown = {"rows": count, "latent_dim": vae.latent_dim, "out": options.out}
    _print(options, [shown], lambda row: f"{row['rows']:,} latents of {row['latent_dim']} dimensions in {row['out']}")


def along_data(vae: Any, options: argparse.Namespace) -> list[str]:
    """Returns the texts of `interpolate --path data`."""
    from textvae import toolbox
    from textvae.cli import _decoding_options, _lines

    corpus = _lines(options.corpus) if options.corpus else None
    return toolbox.interpolate(
        vae, options.a, options.b, options.steps, corpus=corpus, seed=options.seed, **_decoding_options(options)
    )


def _labelled_texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    from textvae.evaluation import labelled

    columns = tuple(options.columns or labelled.PROBE_COLUMNS)
    texts, labels = labelled.load(options.labelled, columns, file_format=options.labelled_format)
    return list(texts), [str(label) for label in labels]


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "analogy": analogy,
    "anomaly": anomaly,
    "map": table,
    "mix": mix,
    "neighbours": neighbours,
    "perturb": perturb,
    "sample_label": sample_label,
    "shift": shift,
    "traverse": traverse,
}
