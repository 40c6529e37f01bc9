"""The shape of a recipe: defaults, what excludes what, and plain values that read back."""

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textvae.durations import parse_duration
from textvae.recipe import Recipe

LEAST = {"data": {"grammar": {}}, "training": {"max_epochs": 1}}


def recipe(**changes):
    return Recipe.model_validate({**LEAST, **changes})


def message(**changes):
    with pytest.raises(pydantic.ValidationError) as caught:
        recipe(**changes)
    return str(caught.value)


def test_with_nothing_said_the_objective_is_the_elbo():
    terms = recipe().objective.terms
    assert {name: (term.kind, term.weight) for name, term in terms.items()} == {"kl": ("kl", 1.0)}


def test_a_language_model_has_no_term_by_itself_and_may_not_be_given_one():
    assert recipe(model={"latent_dim": 0}).objective.terms == {}
    found = message(model={"latent_dim": 0}, objective={"kl": {"kind": "kl"}, "mmd": {"kind": "mmd"}})
    assert "objective.kl, objective.mmd: a language model" in found


def test_a_term_set_to_null_is_left_out():
    assert list(recipe(objective={"kl": None, "mmd": {"kind": "mmd"}}).objective.terms) == ["mmd"]


@pytest.mark.parametrize("name", ["a b", "", "a.b", "1st", "reconstruction\n"])
def test_a_terms_name_is_a_plain_word(name):
    assert "pattern" in message(objective={name: {"kind": "kl"}})


@pytest.mark.parametrize("name", ["terms", "reconstruction", "step", "part", "loss", "tokens_per_s", "kl_weight"])
def test_a_term_may_not_be_called_what_means_something_else(name):
    assert f"a term cannot be called {name!r}" in message(objective={"terms": {name: {"kind": "kl"}}})


def test_a_section_that_names_no_kind_has_its_familys_default():
    model = recipe(model={"encoder": {"cell": "gru"}}, training={"max_steps": 1, "decay": {"factor": 0.5}})
    assert model.model.encoder.as_dict() == {"kind": "recurrent", "cell": "gru"}
    assert model.training.decay.kind == "plateau"


def test_a_recipe_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe().seed = 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "got none; exactly one source"),
        ({"hub": {"name": "a"}, "folder": "b"}, "got hub, folder; exactly one source"),
        ({"files": {"test": "a"}}, ".files.train: is missing"),
        ({"grammar": {}, "format": "csv"}, ".format: belongs to files, and the source is grammar"),
        ({"files": {"train": "a"}, "splits": {"train": "x"}}, ".splits: belongs to hub and folder"),
        ({"files": {"train": "a", "validation": "b"}, "validation_fraction": 0.1}, ".validation_fraction: is given"),
        ({"grammar": {}, "validation_fraction": 0.1}, ".validation_fraction: is given"),
        ({"hub": {"name": "a"}, "streaming": True, "validation_fraction": 0.1}, ".validation_fraction: cannot cut"),
        ({"grammar": {}, "streaming": True}, ".streaming: is for hub"),
    ],
)
def test_what_the_data_section_says_together_must_be_possible(data, expected):
    assert expected in message(data=data)


def test_a_training_needs_an_end():
    assert "max_epochs or max_steps is needed" in message(training={})


@pytest.mark.parametrize(
    ("written", "read"),
    [(500, (500, "steps")), ("500", (500, "steps")), ("1 step", (1, "steps")), ("1.5 epochs", (1.5, "epochs"))],
)
def test_a_duration_is_steps_or_epochs(written, read):
    assert parse_duration(written) == read


@pytest.mark.parametrize(
    "written", [0, -1, "", "soon", "0 epochs", "-1 steps", "1 day", "1 2 epochs", "inf", "nan epochs"]
)
def test_any_other_duration_is_an_error_with_an_example(written):
    with pytest.raises(ValueError, match="'10 epochs'"):
        parse_duration(written)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**32 - 1),
            "model": st.fixed_dictionaries({"latent_dim": st.integers(1, 9), "word_dropout": st.floats(0, 0.99)}),
            "objective": st.dictionaries(
                st.sampled_from(["kl", "mmd", "more"]),
                st.fixed_dictionaries(
                    {"kind": st.just("kl")},
                    optional={"weight": st.floats(0, 1e9) | st.fixed_dictionaries({"kind": st.text()}), "x": st.text()},
                ),
            ),
        },
    )
)
def test_resolved_values_read_back_to_an_equal_recipe(changes):
    first = recipe(**changes)
    assert Recipe.model_validate_json(Recipe.model_validate(first.resolved()).model_dump_json()) == first
