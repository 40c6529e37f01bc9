"""The tables of the corpora: each family of recipes trained on local files, and measured the same way.

    python -m tests.benchmarks.corpora flickr30k --data DATA --out runs/flickr30k
    python -m tests.benchmarks.corpora ptb --data DATA --tested 0 --samples 100 --seeds 0 1 2 --device cuda --jobs 14
    python -m tests.benchmarks.corpora flickr30k --table runs/flickr30k/results.jsonl

DATA/flickr30k holds train.txt.gz, valid.txt.gz and test.txt.gz; the family is recipes/flickr30k-*.yaml. (Without a
train part valid is trained on, but for the twentieth that is kept for validation.) One row a recipe and seed is
appended to OUT/results.jsonl; what has a row is not run again, a training that was cut off goes on. Each run uses one
thread and bf16, and a GPU where there is one, which several may share.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.methods import RECIPES, SECONDS, Column, run_missing, table

FIRST = ("ae", "lm")  # what others start from or are held against
AFTER = {"fb-pretrained": "ae", "best": "ae"}  # recipes that start from another's run
TESTED = 1000  # sentences of the test part
SHOWN = 20  # samples that are kept
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


def run_one(
    name: str, seed: int, out: Path, *, family: str, data: Path, samples: int, tested: int, device: str
) -> dict[str, Any]:
    """Trains one recipe with one seed, or goes on with it, and returns its row."""
    import torch

    from textvae import load, recipe_file
    from textvae.training import train

    folder = out / f"{name}-{seed}"
    overrides = [
        "data.column=text",
        f"evaluation.iw_samples={samples}",
        f"seed={seed}",
        "training.threads=1",
        "training.precision=bf16",
    ]
    if tested:
        overrides.append(f"data.limit={{test: {tested}}}")
    if name in AFTER:
        overrides.append(f"training.start_from.run={out / f'{AFTER[name]}-{seed}'}")
    recipe = recipe_file.load(RECIPES / f"{family}-{name}.yaml", overrides)
    # In place of all that the recipe names, where an override would leave the parts that are not here.
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"hub": None, "files": _files(data / family)})}
    )
    train(recipe, folder, resume=folder.exists(), quiet=True)
    vae = load(folder, device=device)
    figures = vae.evaluate("test", seed=0, recipe=recipe)
    (folder / "samples.txt").write_text("".join(f"{text}\n" for text in vae.sample(SHOWN, seed=0)))
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in history if row["part"] == "validation"][-1]
    row: dict[str, Any] = {"method": name, "seed": seed, "samples": samples}
    row |= {key: value for key, value in figures.items() if value is None or isinstance(value, (int, float))}
    epochs = len({row["epoch"] for row in history})
    return row | {
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "epochs": epochs,
        "minutes": last["elapsed_s"] / 60,
        SECONDS: last["elapsed_s"] / epochs,
    }


def _files(folder: Path) -> dict[str, str]:
    paths = {part: str(folder / f"{file}.txt.gz") for part, file in FILES.items()}
    if not Path(paths["train"]).is_file():
        paths["train"] = paths.pop("validation")
    return paths


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.corpora", description=__doc__)
    parser.add_argument("family", help="the recipes' name up to its first hyphen")
    parser.add_argument("--data", type=Path, help="the folder of corpora")
    parser.add_argument("--out", type=Path, help="runs/FAMILY where absent")
    parser.add_argument("--only", nargs="*", help="recipes' names without the family, in this order")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--samples", type=int, default=50, help="importance samples a sentence")
    parser.add_argument("--tested", type=int, default=TESTED, help=f"sentences of the test part, 0 for all ({TESTED})")
    parser.add_argument("--device", default="cpu", help="of the evaluation (cpu)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", type=Path, help="print the table of a file of results, run nothing")
    options = parser.parse_args()
    family: str = options.family
    if options.table:
        print(table(map(json.loads, options.table.read_text().splitlines()), COLUMNS, f"{family}-"))
        return
    if options.data is None:
        parser.error("--data is needed: the folder of corpora")
    known = names(family)
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    run = functools.partial(
        run_one,
        family=family,
        data=options.data.resolve(),
        samples=options.samples,
        tested=options.tested,
        device=options.device,
    )
    out = options.out or Path("runs") / family
    run_missing(run, options.only or known, options.seeds, out, options.jobs, AFTER)


if __name__ == "__main__":
    main()
