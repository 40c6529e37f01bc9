"""The tables of the corpora: each family of recipes trained on local files, and measured the same way.

    python -m tests.benchmarks.corpora flickr30k --data DATA --out runs/flickr30k
    python -m tests.benchmarks.corpora flickr30k --table runs/flickr30k/results.jsonl

DATA/flickr30k holds train.txt.gz, valid.txt.gz and test.txt.gz; the family is recipes/flickr30k-*.yaml. (Without a
train part valid is trained on, but for the twentieth that is kept for validation.) One row a recipe and seed is
appended to OUT/results.jsonl; what has a row is not run again, a training that was cut off goes on. Each run uses one
thread and bf16.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.methods import RECIPES, SECONDS, Column, run_missing, table

FIRST = ("lm", "ae")  # what others are held against or start from
TESTED = 1000  # sentences of the test part
FILES = {"train": "train", "validation": "valid", "test": "test"}

COLUMNS: tuple[Column, ...] = (
    ("nll_iw", "NLL (IW)", 2),
    ("nll_elbo", "-ELBO", 2),
    ("ppl_iw", "IW PPL", 2),
    ("ppl_elbo", "ELBO PPL", 2),
    ("kl", "KL", 2),
    ("mutual_information", "MI", 2),
    ("active_units", "AU", 0),
    ("bleu", "BLEU", 1),
    ("minutes", "minutes", 1),
    (SECONDS, "s/epoch, least", 1),
)


def names(family: str) -> list[str]:
    """The recipes of a family, without its name."""
    found = [path.stem.removeprefix(f"{family}-") for path in sorted(RECIPES.glob(f"{family}-*.yaml"))]
    return sorted(found, key=lambda name: name not in FIRST)


def run_one(name: str, seed: int, out: Path, *, family: str, data: Path, samples: int) -> dict[str, Any]:
    """Trains one recipe with one seed, or goes on with it, and returns its row."""
    from textvae import load, recipe_file
    from textvae.training import train

    folder = out / f"{name}-{seed}"
    overrides = [
        f"data.files={{{_files(data / family)}}}",
        "data.column=text",
        f"data.limit={{test: {TESTED}}}",
        f"evaluation.iw_samples={samples}",
        f"seed={seed}",
        "training.threads=1",
        "training.precision=bf16",
    ]
    recipe = recipe_file.load(RECIPES / f"{family}-{name}.yaml", overrides)
    train(recipe, folder, resume=folder.exists(), quiet=True)
    figures = load(folder).evaluate("test", seed=0, recipe=recipe)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in history if row["part"] == "validation"][-1]
    row: dict[str, Any] = {"method": name, "seed": seed, "samples": samples}
    row |= {key: figures.get(key) for key, _, _ in COLUMNS if key not in ("minutes", SECONDS)}
    return row | {
        "reconstruction": figures["reconstruction"],
        "epochs": last["epoch"],
        "minutes": last["elapsed_s"] / 60,
        SECONDS: last["elapsed_s"] / max(last["epoch"], 1),
    }


def _files(folder: Path) -> str:
    paths = {part: folder / f"{file}.txt.gz" for part, file in FILES.items()}
    if not paths["train"].is_file():
        paths["train"] = paths.pop("validation")
    return ", ".join(f"{part}: {path}" for part, path in paths.items())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.corpora", description=__doc__)
    parser.add_argument("family", help="the recipes' name up to its first hyphen")
    parser.add_argument("--data", type=Path, help="the folder of corpora")
    parser.add_argument("--out", type=Path, help="runs/FAMILY where absent")
    parser.add_argument("--only", nargs="*", help="recipes' names without the family")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--samples", type=int, default=50, help="importance samples a sentence")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", type=Path, help="print the table of a file of results, run nothing")
    options = parser.parse_args()
    family: str = options.family
    if options.table:
        print(table(map(json.loads, options.table.read_text().splitlines()), COLUMNS, f"{family}-"))
        return
    if options.data is None:
        parser.error("--data is needed: the folder of corpora")
    chosen = [name for name in names(family) if not options.only or name in options.only]
    run = functools.partial(run_one, family=family, data=options.data.resolve(), samples=options.samples)
    run_missing(run, chosen, options.seeds, options.out or Path("runs") / family, options.jobs)


if __name__ == "__main__":
    main()
