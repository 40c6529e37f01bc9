"""Recorded steps of generation write what steps that are launched one by one write, word for word.

On a CPU, by a recorder that does the work again in place of a GPU's graph; `test_gpu.py` has the real one.
"""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from textvae.generation import recorded, search
from textvae.generation.search import generate_scored
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.output import SoftmaxOutput
from textvae.recipe import Generation

PAD, BOS, EOS, UNK = 0, 1, 2, 3
VOCABULARY, LATENT = 300, 4


class Again:
    """Records by keeping the work; it is done once more where a graph would be played."""

    def __init__(self, *, room: bool = True, short_of_memory: bool = False) -> None:
        self.room, self.short_of_memory = room, short_of_memory
        self.recorded = self.played = self.cleared = 0

    def has_room(self) -> bool:
        return self.room

    def record(self, work):
        if self.short_of_memory:
            raise torch.OutOfMemoryError("no room for a recording")
        self.recorded += 1

        def play() -> None:
            self.played += 1
            work()

        return play, torch.zeros(0)

    def clear(self) -> None:
        self.cleared += 1


def model(cell: str = "lstm", layers: int = 2) -> SequenceVAE:
    torch.manual_seed(0)
    made = SequenceVAE(
        latent_dim=LATENT,
        decoder_embedding=nn.Embedding(VOCABULARY, 12),
        decoder=RecurrentDecoder(12, LATENT, cell=cell, hidden_dim=16, layers=layers),
        output=SoftmaxOutput(16, VOCABULARY),
        word_dropout=nn.Identity(),
    )
    # Sentences of all lengths, some of which are cut: </s> is as likely as some other words together.
    made.output.weight.data *= 8
    made.output.bias.data[EOS] = 3.0
    return made.double().eval()  # so that the rows beside a sentence do not decide between words


def decoded(z, settings, monkeypatch, recorder=None, **kind):
    monkeypatch.setattr(recorded, "runs_ahead", lambda tensor: recorder is not None)
    monkeypatch.setattr(search, "Recorder", lambda device: recorder)
    chosen = Generation.model_validate({"max_length": 40, **settings})
    return generate_scored(
        model(**kind),
        z,
        settings=chosen,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        unk_id=UNK,
        generator=torch.Generator().manual_seed(5),
    )


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same(mine, theirs):
    assert mine.ids == theirs.ids
    torch.testing.assert_close(mine.log_likelihood, theirs.log_likelihood)


@pytest.mark.parametrize("worth", [0, 2**40], ids=["fewer rows", "all rows"])
@pytest.mark.parametrize("count", [1, 5, 50], ids="{} sentences".format)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "greedy"},
        {"method": "sample"},
        {"method": "sample", "temperature": 0.7},
        {"method": "sample", "top_k": 5, "top_p": 1.0},
        {"method": "sample", "ban_unk": False, "max_length": 17},
    ],
    ids=str,
)
def test_words_and_likelihoods_are_those_of_launched_steps(settings, count, worth, monkeypatch):
    expected = decoded(latents(count), settings, monkeypatch)
    monkeypatch.setattr(recorded, "WORTH", worth)
    recorder = Again()
    assert_same(decoded(latents(count), settings, monkeypatch, recorder), expected)
    assert recorder.recorded


def test_sentences_are_of_many_lengths_and_some_are_cut(monkeypatch):
    lengths = {len(ids) for ids in decoded(latents(50), {"method": "sample"}, monkeypatch).ids}
    assert len(lengths) > 10
    assert max(lengths) == 40


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_parts_share_recordings(cell, method, monkeypatch):
    monkeypatch.setattr(search, "CPU_ROWS", 16)
    monkeypatch.setattr(recorded, "WORTH", 0)
    z, kind = latents(70), {"cell": cell, "layers": 1}
    expected = decoded(z, {"method": method}, monkeypatch, **kind)
    recorder = Again()
    assert_same(decoded(z, {"method": method}, monkeypatch, recorder, **kind), expected)
    assert recorder.recorded <= 5  # of 16, 8, 4, 2 and 1 rows, at most, for five parts
    assert recorder.played > 5 * recorder.recorded


def test_fewer_rows_are_stepped_where_that_is_worth_a_recording(monkeypatch):
    z, rows = latents(60), {}
    step = SequenceVAE.step
    for worth in (0, 2**40):
        taken: list[int] = []
        monkeypatch.setattr(recorded, "WORTH", worth)
        monkeypatch.setattr(
            SequenceVAE, "step", lambda self, t, z, s, taken=taken: taken.append(len(t)) or step(self, t, z, s)
        )
        decoded(z, {"method": "sample"}, monkeypatch, Again())
        rows[worth] = taken
    assert set(rows[2**40]) == {60}
    assert sum(rows[0]) <= 0.8 * sum(rows[2**40])


@pytest.mark.parametrize("recorder", [Again(room=False), Again(short_of_memory=True)], ids=["full", "runs full"])
def test_without_memory_for_recordings_steps_are_launched(recorder, monkeypatch):
    expected = decoded(latents(20), {"method": "sample"}, monkeypatch)
    assert_same(decoded(latents(20), {"method": "sample"}, monkeypatch, recorder), expected)
    assert not recorder.recorded
    assert recorder.cleared == recorder.short_of_memory


class Loud(nn.Embedding):
    """A user's own, which a recording would silence."""


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sample", "top_p": 0.9},
        {"method": "beam"},
        {"method": "greedy", "max_length": 5},
        {"method": "sample", "max_length": 5000},
    ],
    ids=str,
)
def test_what_is_not_the_same_at_every_step_is_not_recorded(settings, monkeypatch):
    expected = decoded(latents(9), settings, monkeypatch)
    recorder = Again()
    assert_same(decoded(latents(9), settings, monkeypatch, recorder), expected)
    assert not recorder.recorded


def test_what_a_user_wrote_is_not_recorded(monkeypatch):
    monkeypatch.setattr(recorded, "runs_ahead", lambda tensor: True)
    mine, settings = model(), Generation(method="greedy", max_length=40)
    assert recorded.can_be_recorded(mine, latents(1), settings)
    mine.decoder_embedding = Loud(VOCABULARY, 12)
    assert not recorded.can_be_recorded(mine, latents(1), settings)
    mine = model()
    handle = mine.output.register_forward_hook(lambda *_: None)
    assert not recorded.can_be_recorded(mine, latents(1), settings)
    handle.remove()
    assert recorded.can_be_recorded(mine, latents(1), settings)
    mine.__class__ = type("Own", (SequenceVAE,), {"__module__": "theirs"})
    assert not recorded.can_be_recorded(mine, latents(1), settings)


def test_a_model_in_training_is_not_recorded(monkeypatch):
    monkeypatch.setattr(recorded, "runs_ahead", lambda tensor: True)
    assert not recorded.can_be_recorded(model().train(), latents(1), Generation(method="greedy", max_length=40))


def test_without_memory_nothing_is_kept_when_the_call_is_over(monkeypatch):
    made, init = [], recorded.RecordedSteps.__init__

    def remembered(self, *given, **named):
        init(self, *given, **named)
        made.append(weakref.ref(self))

    monkeypatch.setattr(recorded.RecordedSteps, "__init__", remembered)
    gc.disable()
    try:
        decoded(latents(5), {"method": "sample"}, monkeypatch, Again(room=False))
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


def test_threads_beside_the_programs_own_record_nothing(monkeypatch):
    monkeypatch.setattr(recorded, "runs_ahead", lambda tensor: True)
    mine, found = model(), []
    settings = Generation(method="greedy", max_length=40)
    stop = threading.Event()

    def work() -> None:
        found.append(recorded.can_be_recorded(mine, latents(1), settings))
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    beside = recorded.can_be_recorded(mine, latents(1), settings)
    stop.set()
    thread.join()
    assert found == [False]
    assert not beside
    assert recorded.can_be_recorded(mine, latents(1), settings)


def test_no_sentences_are_none(monkeypatch):
    assert decoded(latents(0), {"method": "greedy"}, monkeypatch, Again()).ids == []
