"""The table of methods: every recipe of the built-in corpus, trained and measured the same way.

    python -m tests.benchmarks.methods --out runs/methods                 # all recipes, three seeds
    python -m tests.benchmarks.methods --out runs/methods --only mmd vae  # some
    python -m tests.benchmarks.methods --table recipes/methods.jsonl      # the table of results that exist

One row a recipe and seed is appended to OUT/results.jsonl; what has a row is not run again, a training that was cut off
goes on. Each run uses one thread, so `--jobs` of them go side by side without changing a number.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
PREFIX = "grammar-"
AFTER = {"pretrained": "ae-gaussian"}  # a method that starts from another's run
FITTED = {"ae": "mixture"}  # a method without a prior of its own, and the one fitted to its latents
PATHS, SAMPLES = 100, 1000

SECONDS = "seconds_an_epoch"

Column = tuple[str, str, int]  # key of a result, heading, digits
COLUMNS: tuple[Column, ...] = (
    ("excess", "NLL above truth", 2),
    ("gap", "-ELBO above IW", 2),
    ("kl", "KL", 2),
    ("mutual_information", "MI", 2),
    ("active_units", "AU", 0),
    ("bleu", "BLEU", 1),
    ("grammatical", "grammatical", 3),
    ("unique", "unique", 3),
    ("probe", "probe", 3),
    (SECONDS, "s/epoch, least", 1),
)


def names() -> list[str]:
    """The methods, in the order of their files."""
    return [path.stem.removeprefix(PREFIX) for path in sorted(RECIPES.glob(f"{PREFIX}*.yaml"))]


def run_one(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Trains one method with one seed, or goes on with it, and returns its row."""
    from textvae import load, recipe_file
    from textvae.text import grammar
    from textvae.training import train

    folder = out / f"{name}-{seed}"
    overrides = [f"seed={seed}", "training.threads=1"]
    if name in AFTER:
        overrides.append(f"training.start_from.run={out / f'{AFTER[name]}-{seed}'}")
    recipe = recipe_file.load(RECIPES / f"{PREFIX}{name}.yaml", overrides)
    train(recipe, folder, resume=folder.exists(), quiet=True)
    vae = load(folder)
    if name in FITTED:
        data = recipe.data.grammar
        assert data is not None
        vae.fit_prior(grammar.sentences(data.seed, "train", data.train), kind=FITTED[name])
    figures = vae.evaluate("test", seed=0, paths=PATHS if vae.latent_dim else 0)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in history if row["part"] == "validation"][-1]
    row: dict[str, Any] = {"method": name, "seed": seed}
    row |= {k: figures[k] for k in ("nll_iw", "nll_elbo", "kl", "mutual_information", "active_units", "bleu")}
    row["reconstruction"] = figures["reconstruction"]
    row |= {f"path_{key}": value for key, value in figures.get("paths", {}).items()}
    row |= {key: value for key, value in last.items() if key.endswith("_lipschitz")}
    row[SECONDS] = last["elapsed_s"] / len({row["epoch"] for row in history})
    row["steps"] = last["step"]
    return row | _against_the_grammar(vae, figures)


def _against_the_grammar(vae: Any, figures: dict[str, Any]) -> dict[str, Any]:
    """What only a corpus whose truth is known can say."""
    from textvae.text import grammar

    data = vae.recipe.data.grammar
    test = grammar.sentences(data.seed, "test", data.test)
    # Of these very sentences, so that the draw of the test part is no noise in the difference.
    truth = -statistics.fmean(map(grammar.log_probability, test))
    drawn = vae.sample(SAMPLES, seed=0)
    scored = [grammar.log_probability(text) for text in drawn]
    made = [value for value in scored if value > float("-inf")]
    found = {
        "truth": truth,
        "excess": None if figures["nll_iw"] is None else figures["nll_iw"] - truth,
        "gap": None if figures["nll_iw"] is None else figures["nll_elbo"] - figures["nll_iw"],
        "grammatical": len(made) / len(drawn),
        "unique": len(set(drawn)) / len(drawn),
    }
    return found | ({"probe": _probe(vae, data)} if vae.latent_dim else {})


def _probe(vae: Any, data: Any) -> float:
    """Mean accuracy of linear probes for the grammar's attributes, from posterior means, with 1,000 labels."""
    from textvae.evaluation.probes import linear_probe
    from textvae.text import grammar

    train = grammar.sentences(data.seed, "validation", data.validation)
    test = grammar.sentences(data.seed, "test", data.validation)
    z, z_test = vae.encode(train), vae.encode(test)
    labels, labels_test = [list(map(grammar.attributes, texts)) for texts in (train, test)]
    known = sorted(labels[0])
    return statistics.fmean(
        linear_probe(z, [row[key] for row in labels], z_test, [row[key] for row in labels_test]).accuracy
        for key in known
    )


def table(rows: Iterable[dict[str, Any]], columns: Sequence[Column] = COLUMNS, prefix: str = PREFIX) -> str:
    """Returns the Markdown table: mean and standard deviation over seeds, the best by the first column first."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    lines = [
        "| recipe | " + " | ".join(heading for _, heading, _ in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]

    def first(found: list[dict[str, Any]]) -> float:
        known = [row[columns[0][0]] for row in found if row[columns[0][0]] is not None]
        return statistics.fmean(known) if known else float("inf")

    for name, found in sorted(by_method.items(), key=lambda item: first(item[1])):
        # Other work on the machine only ever adds to a time: the least is nearest to the method's own.
        times = [min(row[SECONDS] for row in found)]
        cells = [
            _cell(times if key == SECONDS else [row.get(key) for row in found], digits) for key, _, digits in columns
        ]
        lines.append(f"| `{prefix}{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{max(digits, 1)}f}"


def run_missing(
    run: Callable[[str, int, Path], dict[str, Any]],
    names: list[str],
    seeds: list[int],
    out: Path,
    jobs: int,
    after: Mapping[str, str],
) -> None:
    """Runs what has no row in OUT/results.jsonl yet, `jobs` at once, and appends a row for each as it ends.

    Args:
        run: name, seed, folder -> row, which names `method` and `seed`.
        names: of the methods, in the order in which they begin.
        seeds: of each.
        out: the folder.
        jobs: processes.
        after: method -> the one whose run of the same seed it starts from, and waits for.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    done = set()
    if results.exists():
        done = {(row["method"], row["seed"]) for row in map(json.loads, results.read_text().splitlines())}
    waiting = [(name, seed) for seed in seeds for name in names if (name, seed) not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    running: dict[Future[dict[str, Any]], tuple[str, int]] = {}
    with pool:
        while waiting or running:
            ahead = {*waiting, *running.values()}
            for name, seed in list(waiting):
                if (after.get(name), seed) not in ahead:
                    waiting.remove((name, seed))
                    running[pool.submit(run, name, seed, out)] = name, seed
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                name, seed = running.pop(job)
                if job.exception() is not None:
                    print(f"{name} {seed}: failed: {job.exception()!r}", file=sys.stderr, flush=True)
                    continue
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(job.result()) + "\n")
                print(f"{name} {seed}: done", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="*", help="recipes' names without grammar-")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", type=Path, help="print the table of a file of results, run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(map(json.loads, options.table.read_text().splitlines())))
        return
    chosen = [name for name in names() if not options.only or name in options.only]
    run_missing(run_one, chosen, options.seeds, options.out, options.jobs, AFTER)


if __name__ == "__main__":
    main()
