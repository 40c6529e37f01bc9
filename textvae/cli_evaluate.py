"""`textvae evaluate` and `textvae compare`: figures of a run, and runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from textvae.errors import UserError


def evaluate(options: argparse.Namespace) -> None:
    """Prints the figures of a part of the corpus, and keeps them with --save."""
    from textvae import launch
    from textvae.cli import _load

    labelled = _labelled_options(options)  # first, for a mistake in them is soon found
    vae = _load(options)
    recipe = None
    for override in options.overrides:
        if override.partition("=")[0].partition(".")[0] not in ("data", "evaluation", "generation"):
            raise UserError(
                f"{override}: a run is evaluated as it is; data.*, evaluation.* and generation.* can be set here "
                "(the seed: --seed)"
            )
    if options.overrides:
        from textvae import recipe_file
        from textvae.checkpoint import RECIPE

        recipe = recipe_file.load(Path(options.run) / RECIPE, _of_its_method(options.overrides))
    result = vae.evaluate(
        options.split,
        recipe=recipe,
        seed=options.seed,
        samples=options.samples,
        paths=options.paths,
        molecules=options.molecules,
        whole=options.save,
        anneal=options.anneal,
        language=options.language,
        progress=launch.is_first(),
        **labelled,
    )
    if options.save:
        decoding = _decoding_of(recipe.generation) if recipe is not None else {}
        _save_evaluation(vae, Path(options.run), result, options.seed, decoding)
        for name in ("per_sentence", "fingerprint", "reconstructions"):
            result.pop(name, None)
    if launch.is_first() and result["dropped"]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in result["dropped"].items())
        print(f"textvae: of the part {options.split}: {dropped}", file=sys.stderr)
    samples = result.get("samples")
    if launch.is_first() and samples and samples["reference_sentences"] < samples["count"]:
        print(
            f"textvae: the part {options.split} has {samples['reference_sentences']:,} sentences, and samples are "
            f"{samples['count']:,}: their _reference is of fewer texts, and such figures depend on how many",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps(result, allow_nan=False))
        return
    rows = list(_flat(result))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _of_its_method(overrides: Sequence[str]) -> list[str]:
    """Overrides, and that another method than sampling has none of the temperature and truncation of the run's own."""
    from textvae.combinations import OF_SAMPLING

    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if given.get("generation.method", "sample") == "sample":
        return list(overrides)
    nothing = {f"generation.{key}": json.dumps(value) for key, value in OF_SAMPLING.items()}
    return [*overrides, *(f"{key}={value}" for key, value in nothing.items() if key not in given)]


def _decoding_of(generation: Any) -> dict[str, Any]:
    """The options of decoding that a recipe sets, less those that its method knows nothing of."""
    from textvae.combinations import OF_SAMPLING

    foreign = {"beam": tuple(OF_SAMPLING), "sample": ("beam_size",)}
    left = foreign.get(generation.method, (*OF_SAMPLING, "beam_size"))
    return {name: value for name, value in generation if value is not None and name not in left}


def _labelled_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of language models and labelled files ask for, the files read."""
    from textvae.cli import _at_most

    for name, needed in {
        "language_steps": ("language",),
        "probe_columns": ("probe",),
        "per_label": ("probe",),
        "pairs_columns": ("pairs",),
        "labelled_format": ("probe", "pairs"),
    }.items():
        if getattr(options, name) is not None and not any(getattr(options, other) for other in needed):
            others = " or ".join(f"--{other}" for other in needed)
            raise UserError(f"--{name.replace('_', '-')}: says nothing without {others}")
    _at_most("--language", options.language)
    _at_most("--language-steps", options.language_steps)
    given = {name: getattr(options, name) for name in ("language_steps", "per_label")}
    found = {name: value for name, value in given.items() if value is not None}
    if options.probe or options.pairs:
        from textvae.evaluation import labelled

        if options.probe:
            columns = tuple(options.probe_columns or labelled.PROBE_COLUMNS)
            train, test = options.probe
            found["probe"] = labelled.load_probe(train, test, columns, file_format=options.labelled_format)
        if options.pairs:
            columns = tuple(options.pairs_columns or labelled.PAIRS_COLUMNS)
            found["pairs"] = labelled.load_pairs(options.pairs, columns, file_format=options.labelled_format)
    return found


def _save_evaluation(vae: Any, run: Path, result: dict[str, Any], seed: int, decoding: dict[str, Any]) -> None:
    from textvae import launch
    from textvae.checkpoint import write_text
    from textvae.evaluation import page

    texts = vae.sample(20, seed=seed, **decoding)  # by all processes, where there are several
    if not launch.is_first():
        return
    write_text(run / f"evaluation-{result['split']}.json", json.dumps(result, allow_nan=False))
    shown = {name: value for name, value in result.items() if name != "fingerprint"}
    html, table = page.write(shown, run, samples=texts)
    print(f"textvae: wrote {html} and {table}", file=sys.stderr)


def compare(options: argparse.Namespace) -> None:
    """Prints how runs differ from the first."""
    import torch

    from textvae.cli import _print
    from textvae.evaluation import compare as comparison

    saved = {name: _evaluation(Path(name), options.split, options.figure) for name in options.runs}
    comparison.same_measure(saved, options.figure)
    tokens = {name: result["per_sentence"]["tokens"] for name, result in saved.items()}
    rows = comparison.compare(
        {name: result["per_sentence"][options.figure] for name, result in saved.items()},
        tokens=tokens if options.figure in comparison.LIKELIHOODS else None,
        fingerprints={name: result["fingerprint"] for name, result in saved.items()},
        generator=torch.Generator().manual_seed(0),  # the same again the next time
    )
    beside = comparison.side_by_side(saved, generator=torch.Generator().manual_seed(0))
    if options.json:
        _print(options, [*(row._asdict() for row in rows), *beside], str)
        return
    sys.stdout.write(comparison.table(rows, figure=options.figure, markdown=options.markdown))
    sys.stdout.write("\n" + comparison.side_by_side_table(beside, markdown=options.markdown))


def _evaluation(run: Path, split: str, figure: str) -> dict[str, Any]:
    path = run / f"evaluation-{split}.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = dict(result["per_sentence"])
        known = {column: [float(value) for value in values] for column, values in known.items()}
        if "tokens" not in known:
            raise KeyError("tokens")
        result |= {"per_sentence": known, "fingerprint": str(result["fingerprint"])}
    except OSError as error:
        hint = f"run: textvae evaluate {run} --split {split} --save"
        raise UserError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: is damaged, or no evaluation ({error!r})") from error
    if figure not in known:
        raise UserError(f"{path}: has no {figure}: a plain autoencoder's sentences have no likelihood")
    return result


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


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {"compare": compare, "evaluate": evaluate}
