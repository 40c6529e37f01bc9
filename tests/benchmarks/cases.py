"""What is measured: each case makes one run of ours and one of the textbook's, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.benchmarks import limit, textbook
from tests.benchmarks.models import (
    copy_weights,
    our_model,
    our_trainer,
    talkative,
    textbook_model,
    textbook_trainer,
)
from tests.benchmarks.sizes import BOS, EOS, LARGE, PAD, SMALL, UNK, Sizes, sentences, training_batches
from textvae.evaluation.bounds import iw_nll
from textvae.generation.latent import path
from textvae.generation.search import generate
from textvae.recipe import Generation
from textvae.text.batching import ListStore, collate, evaluation_batches
from textvae.types import Batch

SAMPLES, POINTS, LONGEST = 500, 7, 60
HUGE = Sizes(50_000, 256, 256, 32)
METHODS: dict[str, tuple[dict[str, Any], Callable[[textbook.Textbook, Tensor], list[list[int]]]]] = {
    "sample": ({"method": "sample"}, lambda m, z: textbook.generate(m, z, textbook.multinomial, LONGEST)),
    "nucleus": (
        {"method": "sample", "top_p": 0.9},
        lambda m, z: textbook.generate(m, z, textbook.nucleus, LONGEST),
    ),
    "beam5": ({"method": "beam", "beam_size": 5}, lambda m, z: textbook.beam(m, z, 5, LONGEST)),
}


class Options(NamedTuple):
    device: torch.device = torch.device("cpu")
    optimizer: str = "sgd"
    quick: bool = False


class Done(NamedTuple):
    """One run's work."""

    units: float  # what per_second counts
    rows: float  # what the limit's operations are counted by


Run = Callable[[], Done]


def after(work: Callable[[], object], done: Done) -> Run:
    """Returns a run that does `work` and reports what that was."""

    def run() -> Done:
        work()
        return done

    return run


@dataclass(frozen=True)
class Case:
    """A comparison; either side is made only where it is wanted."""

    unit: str
    ours: Callable[[], Run]
    textbook: Callable[[], Run]
    check: Callable[[], str] | None = None  # says what agreed; raises where it does not
    operations: limit.Operations | None = None
    machine: Callable[[], limit.Machine] | None = None
    memory_only: bool = False


def training(sizes: Sizes, batch_size: int, steps: int, options: Options, *, memory_only: bool = False) -> Case:
    steps = 1 if memory_only else max(1, steps // 4) if options.quick else steps
    count = 4 * batch_size if options.quick or memory_only else None
    batches = training_batches(sentences(sizes.vocabulary, count), batch_size, steps)
    tokens = sum(len(row) - 1 for rows in batches for row in rows)
    done = Done(tokens, tokens)

    def ours() -> Run:
        step = our_trainer(sizes, options.optimizer, options.device)
        return after(lambda: [step(rows) for rows in batches], done)

    def theirs() -> Run:
        step, padded = textbook_trainer(sizes, options.optimizer, options.device), [collate(b, PAD) for b in batches]
        return after(lambda: [step(batch) for batch in padded], done)

    return Case(
        "tokens",
        ours,
        theirs,
        None if memory_only else lambda: same_loss(sizes, batches[0][:8]),
        limit.training(sizes),
        lambda: limit.Machine(sizes, tokens // steps, batch_size, options.device),
        memory_only,
    )


def same_loss(sizes: Sizes, rows: list[list[int]]) -> str:
    """Checks that both models compute the same -ELBO and the same gradients, with the same weights."""
    reference, model = textbook_model(sizes), our_model(sizes)
    copy_weights(reference, model)
    batch = collate(rows, PAD)
    noise = torch.randn(len(rows), sizes.latent)
    expected = reference.loss(batch, noise)
    output = model(batch, noise=noise[None])
    kl = torch.distributions.kl_divergence(output.posterior, output.prior)
    loss = (kl - output.log_likelihood[0]).mean()
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    pairs = {
        "output": (model.output.weight, reference.output.weight),
        "decoder": (model.decoder.rnn.weight_hh_l0, reference.lstm.weight_hh_l0),
        "encoder": (model.encoder_embedding.weight, reference.encoder_embedding.weight),
    }
    for name, (mine, other) in pairs.items():
        gradient = mine.grad.to_dense()
        torch.testing.assert_close(gradient, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    return f"-ELBO {loss.item():.5f} and {expected.item():.5f} nats a sentence, gradients equal"


def importance(options: Options) -> Case:
    count, samples = (2, 100) if options.quick else (8, SAMPLES)
    device = options.device
    store = sentences(SMALL.vocabulary, count)
    tokens = int(store.lengths.sum()) * samples
    done = Done(tokens, tokens)

    def ours_with(model: Any, generator: torch.Generator | None = None, draws: int = samples) -> Tensor:
        batches = (Batch(*(t.to(device) for t in batch)) for _, batch in evaluation_batches(store, PAD))
        return iw_nll(model, batches, samples=draws, generator=generator).nll

    def single() -> list[Batch]:
        order = [int(row) for rows, _ in evaluation_batches(store, PAD) for row in rows]
        return [Batch(*(t.to(device) for t in collate([store[row]], PAD))) for row in order]

    def ours() -> Run:
        model = our_model(SMALL).to(device)
        return after(lambda: ours_with(model), done)

    def theirs() -> Run:
        model, batches = textbook_model(SMALL).to(device).eval(), single()
        noise = [torch.randn(samples, SMALL.latent, device=device) for _ in batches]
        return after(lambda: textbook.iw_nll(model, batches, noise), done)

    def check() -> str:
        reference, model, draws = textbook_model(SMALL), our_model(SMALL), 50
        copy_weights(reference, model)
        mine = ours_with(model.to(device), torch.Generator(device).manual_seed(3), draws)
        # All these sentences stand in one batch: a draw is (1, B, D), one sample after another.
        again = torch.Generator(device).manual_seed(3)
        noise = torch.cat(
            [torch.randn(1, count, SMALL.latent, generator=again, device=device) for _ in range(draws)]
        ).unbind(1)
        other = textbook.iw_nll(reference.to(device).eval(), single(), noise).double().cpu()
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-3)
        return f"NLL of {draws} samples {mine.mean():.4f} and {other.mean():.4f} nats a sentence"

    rows = tokens // int(store.lengths.mean())
    return Case(
        "tokens",
        ours,
        theirs,
        check,
        limit.scoring(SMALL),
        lambda: limit.Machine(SMALL, 20_000, min(rows, 900), device),
    )


class Counted:
    """A model that counts the rows it steps."""

    def __init__(self, model: Any) -> None:
        self.model, self.start, self.rows = model, model.start, 0

    def step(self, tokens: Tensor, z: Tensor, state: Any) -> Any:
        self.rows += len(tokens)
        return self.model.step(tokens, z, state)


def decode(model: Any, z: Tensor, settings: dict[str, Any]) -> list[list[int]]:
    chosen = Generation.model_validate({**settings, "max_length": LONGEST})
    return generate(model, z, settings=chosen, bos_id=BOS, eos_id=EOS, pad_id=PAD, unk_id=UNK)


def written(rows: list[list[int]]) -> int:
    return sum(min(len(row) + 1, LONGEST) for row in rows)


def speaker(device: torch.device) -> Any:
    model = our_model(SMALL)
    copy_weights(talkative(textbook_model(SMALL)), model)
    return model.to(device).eval()


def generation(name: str, options: Options) -> Case:
    settings, reference = METHODS[name]
    count = 100 if options.quick else 1_000
    # The textbook's beam takes a sentence at a time and its nucleus sorts: fewer tell as much.
    few = {"sample": count, "nucleus": count // 4, "beam5": count // 25}[name]
    device = options.device
    z = torch.randn(count, SMALL.latent, generator=torch.Generator().manual_seed(4)).to(device)

    def ours() -> Run:
        model = speaker(device)

        def run() -> Done:
            counted = Counted(model)
            return Done(written(decode(counted, z, settings)), counted.rows)

        return run

    def theirs() -> Run:
        model = talkative(textbook_model(SMALL)).to(device).eval()

        def run() -> Done:
            tokens = written(reference(model, z[:few]))
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

    at_once = 102 * 4 if name == "beam5" else 512
    machine = limit.Machine
    return Case(
        "tokens",
        ours,
        theirs,
        check,
        limit.scoring(SMALL),
        lambda: machine(SMALL, min(at_once, count), min(at_once, count), device),
    )


def interpolation(options: Options) -> Case:
    count = 10 if options.quick else 100
    device, draws = options.device, torch.Generator().manual_seed(5)
    a, b = torch.randn(2, count, SMALL.latent, generator=draws).to(device)

    def line(model: Any) -> list[list[int]]:
        return decode(model, path(a, b, POINTS).transpose(0, 1).flatten(0, 1), {"method": "greedy"})

    def ours() -> Run:
        model = speaker(device)

        def run() -> Done:
            counted = Counted(model)
            return Done(written(line(counted)), counted.rows)

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
        "tokens", ours, theirs, check, limit.scoring(SMALL), lambda: limit.Machine(SMALL, 7 * count, 7 * count, device)
    )


def encoding(options: Options) -> Case:
    count = 200 if options.quick else 2_000
    device, store = options.device, sentences(SMALL.vocabulary, count)
    tokens = int(store.lengths.sum())
    done = Done(tokens, tokens)

    @torch.no_grad()
    def means(model: Any, batches: Any, mean_of: Callable[[Any, Batch], Tensor]) -> Tensor:
        return torch.cat([mean_of(model, Batch(*(t.to(device) for t in batch))) for batch in batches])

    def mine(model: Any, chosen: ListStore) -> Tensor:
        batches = (batch for _, batch in evaluation_batches(chosen, PAD))
        return means(model, batches, lambda m, batch: m.encode(batch).mean)

    def other(model: Any, rows: list[Any]) -> Tensor:
        batches = (collate(rows[i : i + 32], PAD) for i in range(0, len(rows), 32))
        return means(model, batches, lambda m, batch: m.encode(batch)[0])

    def ours() -> Run:
        model = our_model(SMALL).to(device).eval()
        return after(lambda: mine(model, store), done)

    def theirs() -> Run:
        model = textbook_model(SMALL).to(device).eval()
        return after(lambda: other(model, list(store.sentences)), done)

    def check() -> str:
        reference, model = textbook_model(SMALL), our_model(SMALL)
        copy_weights(reference, model)
        some = ListStore(sorted(store.sentences[:32], key=len, reverse=True))  # the order that ours gives them in
        expected = other(reference.to(device).eval(), list(some.sentences))
        torch.testing.assert_close(mine(model.to(device).eval(), some), expected, rtol=1e-4, atol=1e-5)
        return "means equal"

    return Case("tokens", ours, theirs, check, limit.encoding(SMALL), lambda: limit.Machine(SMALL, 20_000, 900, device))


CASES: dict[str, Callable[[Options], Case]] = {
    "train-256-b32": lambda options: training(SMALL, 32, 12, options),
    "train-256-b256": lambda options: training(SMALL, 256, 4, options),
    "train-1024-b32": lambda options: training(LARGE, 32, 4, options),
    "train-1024-b256": lambda options: training(LARGE, 256, 2, options),
    "iw-nll": importance,
    "sample": lambda options: generation("sample", options),
    "nucleus": lambda options: generation("nucleus", options),
    "beam5": lambda options: generation("beam5", options),
    "interpolate": interpolation,
    "encode": encoding,
    "memory-50k": lambda options: training(HUGE, 256, 1, options, memory_only=True),
}
