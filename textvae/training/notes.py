"""The lines that a training says before its first step: what was read, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from textvae.distributed import all_results, rank, world_size
from textvae.model import SequenceVAE
from textvae.recipe import Recipe
from textvae.text import corpora, encoding, grammar
from textvae.types import Tokenizer


def notes(
    recipe: Recipe, corpus: corpora.Corpus, encoded: encoding.EncodedCorpus, tokenizer: Tokenizer, model: SequenceVAE
) -> list[str]:
    """Lines that say what was read and what was left out."""
    sizes = [
        f"{name} {len(part):,}" if hasattr(part, "__len__") else f"{name} streamed"
        for name, part in encoded.parts.items()
    ]
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"corpus: {', '.join(sizes)} sentences; vocabulary {len(tokenizer):,}; {parameters:,} parameters",
        *corpus.notes,
    ]
    cut = any(reason in reasons for reasons in encoded.dropped.values() for reason in ("too_long", "truncated"))
    if recipe.data.grammar is not None and not cut and not _has_unknown(encoded, tokenizer):
        lines.append(
            f"the corpus's entropy, the lowest NLL any model can reach: {grammar.entropy():.3f} nats a sentence"
        )
    return [*lines, *(left_out(part, reasons) for part, reasons in encoded.dropped.items() if any(reasons.values()))]


def left_out(part: str, reasons: Mapping[str, int]) -> str:
    """A line that says how many sentences of a part were left out or cut, and why."""
    return f"{part}: left out or cut: " + ", ".join(f"{count:,} {name}" for name, count in reasons.items() if count)


def everyones(counts: Mapping[str, int], *, shared: bool) -> dict[str, int]:
    """Returns reason -> sentences: of all processes where each reads a share of a stream, else as they are.

    Every process calls it then.
    """
    if not shared or world_size() == 1:
        return dict(counts)
    summed: Counter[str] = Counter()
    for own in all_results({rank(): dict(counts)}):
        summed.update(own)
    return dict(summed)


def _has_unknown(encoded: encoding.EncodedCorpus, tokenizer: Tokenizer) -> bool:
    from pyarrow import compute

    if tokenizer.unk_id is None:
        return False
    ids = compute.list_flatten(encoded.parts["validation"].data.column("tokens"))
    return bool(compute.any(compute.equal(ids, tokenizer.unk_id)).as_py())
