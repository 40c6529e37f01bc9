"""How fast the explorer answers: `python -m tests.benchmarks.explorer RUN`, milliseconds, median and worst.

Each answer is asked of its function and over HTTP as the page asks: put into the queue, its result read from the stream
of the session, pictures not fetched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import textvae
from textvae.explorer import launch, limits, pictures
from textvae.explorer.views import Views, grammar_labels

ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.explorer", description=__doc__)
    parser.add_argument("run", help="a run on the built-in corpus")
    parser.add_argument("--sentences", type=int, default=2000, help="on the map (2000)")
    options = parser.parse_args()
    limits.ANSWERS = 10**9
    limits.Rate.__init__.__defaults__ = (limits.ANSWERS, limits.SECONDS)
    vae = textvae.load(options.run)
    texts = vae.corpus_texts("test", options.sentences)
    blocks = launch(vae, texts=texts, wait=False, say=lambda line: None)
    asked = _over_http(blocks.local_url, texts)
    functions = _functions(Views(vae, texts, grammar_labels(texts)), texts)
    print(f"{options.run}: {len(texts):,} sentences on the map, {ROUNDS} rounds, milliseconds")
    print(f"{'answer':<24}{'function':>20}{'over HTTP':>20}")
    for name, function in functions.items():
        print(f"{name:<24}{_timed(function):>20}{_timed(asked[name]):>20}", flush=True)
    blocks.close(verbose=False)


def _timed(ask: Callable[[], Any]) -> str:
    ask()
    spans = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ask()
        spans.append((time.perf_counter() - began) * 1e3)
    return f"{statistics.median(spans):,.0f} (worst {max(spans):,.0f})"


def _functions(views: Views, texts: list[str]) -> dict[str, Callable[[], Any]]:
    a, b = texts[:2]

    def picture(mark: tuple[float, float] | None = None) -> Any:
        return pictures.chart(views.plane("PCA").points, views.labels["tense"], "map", mark)

    return {
        "walk": lambda: views.walk(a, b),
        "walk along the data": lambda: views.walk(a, b, "data"),
        "10 samples": lambda: views.sample(10),
        "a dimension": lambda: views.move(a, 0, 1.0),
        "an attribute": lambda: views.attribute(a, "tense", "past", "future", 1.0),
        "map": picture,
        "click on the map": lambda: (views.at("PCA", 0.1, 0.2), picture((0.1, 0.2))),
        "KL of the dimensions": lambda: pictures.bars(views.activity[0], [True] * views.vae.latent_dim, "KL"),
    }


def _over_http(address: str, texts: list[str]) -> dict[str, Callable[[], Any]]:
    with urllib.request.urlopen(f"{address}config") as answer:
        config = json.load(answer)
    names = {part["props"].get("elem_id"): part["id"] for part in config["components"]}

    def asks(element: str, event: str, data: list[Any], event_data: Any = None) -> Callable[[], Any]:
        index = next(
            found["id"]
            for found in config["dependencies"]
            if [names[element], event] in [list(t) for t in found["targets"]]
        )
        return lambda: _ask(address, index, data, event_data)

    a, b = texts[:2]
    return {
        "walk": asks("walk-go", "click", [a, b, "linear", 11, 0.5]),
        "walk along the data": asks("walk-go", "click", [a, b, "data", 11, 0.5]),
        "10 samples": asks("sample-go", "click", [10, 1, 1, "sample", 0]),
        "a dimension": asks("dimension-go", "click", [a, 0, 1.0]),
        "an attribute": asks("attribute-go", "click", [a, "topic", *_two_topics(texts), 1.0]),
        "map": asks("map-colour", "change", ["PCA", "tense"]),
        "click on the map": asks("map-image", "select", ["PCA", "tense"], {"index": [300, 250], "value": None}),
        "KL of the dimensions": asks("tab-latents", "select", []),
    }


def _two_topics(texts: list[str]) -> list[str]:
    """Two labels of the attribute that the page offers first: it takes no others before they are chosen."""
    return sorted(set(grammar_labels(texts)["topic"]) - {""})[:2]


def _ask(address: str, index: int, data: list[Any], event_data: Any) -> None:
    session = f"{time.perf_counter_ns():x}"
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session, "event_data": event_data})
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}gradio_api/queue/join", body.encode(), headers)):
        pass
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream:
            said = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if said.get("msg") == "process_completed":
                if not said["success"]:
                    raise SystemExit(f"explorer: {said['output']}")
                return
    raise SystemExit("explorer: the stream ended without an answer")


if __name__ == "__main__":
    main()
