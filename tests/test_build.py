"""The keys of `model` reach the parts that they name, and optimisers their options."""

import copy

import pytest
import torch
from conftest import sentences, tiny_model

from textvae import build
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe
from textvae.text import tokenizers
from textvae.text.batching import collate

TEXTS = sentences(300, 1)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train({"kind": "word"}, TEXTS)


def model_of(tokenizer, **changes):
    values = {"data": {"grammar": {}}, "model": tiny_model(**changes), "training": {"max_steps": 1}}
    torch.manual_seed(0)
    return build.build_model(Recipe.model_validate(values), tokenizer)


def batch_of(tokenizer):
    return collate(tokenizer.encode(TEXTS), tokenizer.pad_id)


def read_by(module):
    """What an embedding is asked for."""
    asked = []
    module.register_forward_hook(lambda _module, given, _result: asked.append(given[0].clone()))
    return asked


def test_tables_are_shared_and_tied_where_the_recipe_says(tokenizer):
    for shared in (False, True):
        model = model_of(tokenizer, share_embeddings=shared)
        assert (model.encoder_embedding.weight is model.decoder_embedding.weight) == shared
    for tied in (False, True):
        model = model_of(tokenizer, tie_output=tied)
        assert (model.output.weight is model.decoder_embedding.weight) == tied


def test_parameters_begin_as_the_initialisation_says(tokenizer):
    model = model_of(tokenizer, initialization={"kind": "uniform", "scale": 0.01, "embedding_scale": 0.1})
    for name, parameter in model.named_parameters():
        bound = 0.1 if "embedding" in name else 0.01
        assert float(parameter.detach().abs().max()) <= bound, name
        if parameter.numel() > 100:
            assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_dropped_words_are_the_decoders_inputs_and_no_target(tokenizer):
    model, batch = model_of(tokenizer, word_dropout=0.4), batch_of(tokenizer)
    asked = read_by(model.decoder_embedding)
    with torch.no_grad():
        model.train()(batch)
        read = asked[0].T  # step after step
        changed = (read != batch.inputs)[:, 1:]
        assert bool((read[:, 1:][changed] == tokenizer.unk_id).all())
        assert float(changed.float().mean()) == pytest.approx(0.4, abs=0.03)
        assert torch.equal(read[:, 0], batch.inputs[:, 0])
        model.eval()(batch)
        assert torch.equal(asked[1].T, batch.inputs)


def test_noise_is_the_encoders_in_the_order_of_the_recipe_and_the_decoder_writes_the_text(tokenizer):
    noise = [{"kind": "blank", "rate": 1.0}, {"kind": "delete", "rate": 0.5}]
    model, batch = model_of(tokenizer, noise=noise), batch_of(tokenizer)
    named = [type(part).__name__.lower() for part in model.noise.modules()]
    assert [name for name in named if name in ("blank", "delete")] == ["blank", "delete"]
    encoded, decoded = read_by(model.encoder_embedding), read_by(model.decoder_embedding)
    with torch.no_grad():
        model.train()(batch)
        words = encoded[0][(encoded[0] != tokenizer.pad_id) & (encoded[0] != tokenizer.eos_id)]
        assert bool((words == tokenizer.unk_id).all())
        assert len(words) == pytest.approx(0.5 * int((batch.lengths - 1).sum()), rel=0.1)
        assert torch.equal(decoded[0].T, batch.inputs)
        model.eval()(batch)
        assert torch.equal(encoded[1].T, batch.targets)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sgd", {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02}),
        ("adam", {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.02}),
        ("adamw", {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.02}),
    ],
)
def test_an_optimiser_has_the_options_it_is_given(kind, options):
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    optimizer = OPTIMIZERS.build({"kind": kind, **plain}, [torch.nn.Parameter(torch.ones(2))])
    assert {name: optimizer.defaults[name] for name in options} == options
    assert type(optimizer).__name__.lower() == kind


def test_a_copy_of_a_model_shares_nothing_with_it(tokenizer):
    model = model_of(tokenizer, tie_output=True, share_embeddings=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.decoder_embedding.weight.add_(1)
    assert other.output.weight is other.encoder_embedding.weight
    assert not torch.equal(model.output.weight, other.output.weight)
