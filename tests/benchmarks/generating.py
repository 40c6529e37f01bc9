"""Cases that write sentences: sampling, nucleus, beam search and interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import limit, textbook
from tests.benchmarks.case import Case, Done, Options, Run
from tests.benchmarks.models import copy_weights, our_model, talkative
from tests.benchmarks.sizes import BOS, EOS, PAD, SMALL, UNK
from tests.benchmarks.textbook_training import textbook_model
from textvae.generation.latent import path
from textvae.generation.search import generate
from textvae.recipe import Generation

POINTS, LONGEST = 7, 60
TEXTBOOK_ROWS = 4_096  # at once: its logits of 100,000 sentences would be 4 GB
METHODS: dict[str, tuple[dict[str, Any], Callable[[textbook.Textbook, Tensor], list[list[int]]]]] = {
    "sample": ({"method": "sample"}, lambda m, z: textbook.generate(m, z, textbook.multinomial, LONGEST)),
    "nucleus": (
        {"method": "sample", "top_p": 0.9},
        lambda m, z: textbook.generate(m, z, textbook.nucleus, LONGEST),
    ),
    "beam5": ({"method": "beam", "beam_size": 5}, lambda m, z: textbook.beam(m, z, 5, LONGEST)),
}


class Counted:
    """A model that counts the rows it steps."""

    def __init__(self, model: Any) -> None:
        self.model, self.start, self.rows = model, model.start, 0
        self.taken = model.step

    def prepared(self, rows: int, steps: int) -> Counted:
        self.taken = self.model.prepared(rows, steps).step
        return self

    def step(self, tokens: Tensor, z: Tensor, state: Any) -> Any:
        self.rows += len(tokens)
        return self.taken(tokens, z, state)


def decode(model: Any, z: Tensor, settings: dict[str, Any]) -> list[list[int]]:
    chosen = Generation.model_validate({**settings, "max_length": LONGEST})
    return generate(model, z, settings=chosen, bos_id=BOS, eos_id=EOS, pad_id=PAD, unk_id=UNK)


def written(rows: list[list[int]]) -> int:
    return sum(min(len(row) + 1, LONGEST) for row in rows)


def speaker(device: torch.device) -> Any:
    model = our_model(SMALL)
    copy_weights(talkative(textbook_model(SMALL)), model)
    return model.to(device).eval()


def generation(name: str, options: Options, count: int = 1_000) -> Case:
    settings, reference = METHODS[name]
    count = 100 if options.quick else count
    # The textbook's beam takes a sentence at a time and its nucleus sorts: fewer tell as much.
    few = {"sample": count, "nucleus": count // 4, "beam5": count // 25}[name]
    device = options.device
    z = torch.randn(count, SMALL.latent, generator=torch.Generator().manual_seed(4)).to(device)

    def ours() -> Run:
        model = speaker(device)

        def run() -> Done:
            if name != "beam5":  # a row a word, and a GPU records the steps of no model but our own
                tokens = written(decode(model, z, settings))
                return Done(tokens, tokens)
            counted = Counted(model)
            return Done(written(decode(counted, z, settings)), counted.rows)

        return run

    def theirs() -> Run:
        model = talkative(textbook_model(SMALL)).to(device).eval()

        def run() -> Done:
            tokens = sum(written(reference(model, part)) for part in z[:few].split(TEXTBOOK_ROWS))
            return Done(tokens, tokens)

        return run

    def check() -> str:
        some = z[: min(few, 20)]
        mine = decode(speaker(device), some, settings)
        other = reference(talkative(textbook_model(SMALL)).to(device).eval(), some)
        length = f"{written(mine) / len(some):.1f} and {written(other) / len(some):.1f} tokens a sentence"
        if settings["method"] == "sample":
            return length
        same = sum(a == b for a, b in zip(mine, other))
        if same < 0.9 * len(some):  # float32 scores may tie
            raise AssertionError(f"only {same} of {len(some)} sentences are the textbook's")
        return f"{same} of {len(some)} sentences the same; {length}"

    at_once = 4_096 if device.type == "cuda" else 512  # as `generate` takes them, of a beam the hypotheses
    at_once = at_once // 5 * 4 if name == "beam5" else at_once
    machine = limit.Machine
    return Case(
        "tokens",
        ours,
        theirs,
        check,
        limit.scoring(SMALL),
        lambda: machine(SMALL, min(at_once, count), min(at_once, count), device, reads=False),
    )


def one_by_one(options: Options) -> Case:
    """Sentences asked for one at a time, as a person or a service asks."""
    count, device = 5 if options.quick else 40, options.device
    z = torch.randn(count, SMALL.latent, generator=torch.Generator().manual_seed(6)).to(device)

    def each(write: Callable[[Tensor], list[list[int]]]) -> list[list[int]]:
        return [row for one in z.split(1) for row in write(one)]

    def ours() -> Run:
        model = speaker(device)

        def run() -> Done:
            tokens = written(each(lambda one: decode(model, one, {"method": "greedy"})))
            return Done(tokens, tokens)

        return run

    def theirs() -> Run:
        model = talkative(textbook_model(SMALL)).to(device).eval()

        def run() -> Done:
            tokens = written(each(lambda one: textbook.generate(model, one, textbook.greedy, LONGEST)))
            return Done(tokens, tokens)

        return run

    def check() -> str:
        mine, reference = speaker(device), talkative(textbook_model(SMALL)).to(device).eval()
        found = each(lambda one: decode(mine, one, {"method": "greedy"}))
        other = each(lambda one: textbook.generate(reference, one, textbook.greedy, LONGEST))
        same = sum(a == b for a, b in zip(found, other))
        if same < 0.9 * count:
            raise AssertionError(f"only {same} of {count} sentences are the textbook's")
        return f"{same} of {count} sentences the same"

    rates = limit.Machine
    return Case("tokens", ours, theirs, check, limit.scoring(SMALL), lambda: rates(SMALL, 1, 1, device, reads=False))


def interpolation(options: Options) -> Case:
    count = 10 if options.quick else 100
    device, draws = options.device, torch.Generator().manual_seed(5)
    a, b = torch.randn(2, count, SMALL.latent, generator=draws).to(device)

    def line(model: Any) -> list[list[int]]:
        return decode(model, path(a, b, POINTS).transpose(0, 1).flatten(0, 1), {"method": "greedy"})

    def ours() -> Run:
        model = speaker(device)

        def run() -> Done:
            tokens = written(line(model))
            return Done(tokens, tokens)

        return run

    def reference() -> Callable[[], list[list[int]]]:
        model = talkative(textbook_model(SMALL)).to(device).eval()
        return lambda: textbook.interpolate(model, a, b, POINTS, LONGEST)

    def theirs() -> Run:
        walk = reference()

        def run() -> Done:
            tokens = written(walk())
            return Done(tokens, tokens)

        return run

    def check() -> str:
        mine, other = line(speaker(device)), reference()()
        same = sum(x == y for x, y in zip(mine, other))
        if same < 0.9 * len(mine):
            raise AssertionError(f"only {same} of {len(mine)} sentences are the textbook's")
        return f"{same} of {len(mine)} sentences the same"

    return Case(
        "tokens",
        ours,
        theirs,
        check,
        limit.scoring(SMALL),
        lambda: limit.Machine(SMALL, POINTS * count, POINTS * count, device, reads=False),
    )
