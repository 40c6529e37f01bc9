"""What is measured: each case makes one run of ours and one of the textbook's, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import limit, loading, textbook
from tests.benchmarks.case import Case, Done, Options, Run, after
from tests.benchmarks.generating import generation, interpolation, one_by_one
from tests.benchmarks.models import copy_weights, our_model, our_name, our_trainer
from tests.benchmarks.sizes import LARGE, PAD, SMALL, Sizes, sentences, training_batches
from tests.benchmarks.textbook_training import textbook_model, textbook_trainer
from textvae.evaluation.bounds import iw_nll
from textvae.text.batching import ListStore, collate, evaluation_batches
from textvae.types import Batch

SAMPLES = 500
HUGE = Sizes(50_000, 256, 256, 32)


def training(sizes: Sizes, batch_size: int, steps: int, options: Options, *, memory_only: bool = False) -> Case:
    steps = 1 if memory_only else max(1, steps // 4) if options.quick else steps
    count = 4 * batch_size if options.quick or memory_only else None
    batches = training_batches(sentences(sizes.vocabulary, count), batch_size, steps)
    tokens = sum(len(row) - 1 for rows in batches for row in rows)
    done = Done(tokens, tokens)

    def ours() -> Run:
        step = our_trainer(sizes, options.optimizer, options.device, precision=options.precision)
        return after(lambda: [step(rows) for rows in batches], done)

    def theirs() -> Run:
        step = textbook_trainer(sizes, options.optimizer, options.device, options.precision)
        padded = [collate(b, PAD) for b in batches]
        return after(lambda: [step(batch) for batch in padded], done)

    return Case(
        "tokens",
        ours,
        theirs,
        None if memory_only else lambda: same_loss(sizes, batches[len(batches) // 2][:8], options.device),
        limit.training(sizes),
        lambda: limit.Machine(sizes, tokens // steps, batch_size, options.device, options.dtype, learns=True),
        memory_only,
    )


def same_loss(sizes: Sizes, rows: list[list[int]], device: torch.device) -> str:
    """Checks that both models compute the same -ELBO and the same gradients, with the same weights."""
    reference, model = textbook_model(sizes), our_model(sizes)
    copy_weights(reference, model)
    reference, model = reference.to(device), model.to(device)
    batch = Batch(*(tensor.to(device) for tensor in collate(rows, PAD)))
    noise = torch.randn(len(rows), sizes.latent, device=device)
    expected = reference.loss(batch, noise)
    output = model(batch, noise=noise[None])
    kl = torch.distributions.kl_divergence(output.posterior, output.prior)
    loss = (kl - output.log_likelihood[0]).mean()
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    mine = dict(model.named_parameters())
    for name, other in reference.named_parameters():
        gradient = mine.pop(our_name(name)).grad.to_dense()
        torch.testing.assert_close(gradient, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    if mine:
        raise SystemExit(f"benchmarks: the textbook has no {', '.join(mine)}")
    return f"-ELBO {loss.item():.5f} and {expected.item():.5f} nats a sentence, gradients equal"


def importance(options: Options) -> Case:
    count, samples = (2, 100) if options.quick else (48, SAMPLES)
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


# Work of a GPU's size; on the CPU only where it is asked for by name.
OF_A_GPU = ("train-1024-b512", "sample-100k")
CASES: dict[str, Callable[[Options], Case]] = {
    "train-256-b32": lambda options: training(SMALL, 32, 12, options),
    "train-256-b256": lambda options: training(SMALL, 256, 8, options),
    "train-1024-b32": lambda options: training(LARGE, 32, 12, options),
    "train-1024-b256": lambda options: training(LARGE, 256, 2, options),
    "iw-nll": importance,
    "sample": lambda options: generation("sample", options),
    "nucleus": lambda options: generation("nucleus", options),
    "beam5": lambda options: generation("beam5", options),
    "one-by-one": one_by_one,
    "interpolate": interpolation,
    "encode": encoding,
    "tokenize": loading.tokenising,
    "load": loading.loading,
    "start-help": loading.start_help,
    "start-train": loading.start_training,
    "train-1024-b512": lambda options: training(LARGE, 512, 4, options),
    "sample-100k": lambda options: generation("sample", options, 100_000),
    "memory-50k": lambda options: training(HUGE, 256, 1, options, memory_only=True),
}
