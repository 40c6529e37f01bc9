"""Recipes that are shipped or dumped: they load, check and fit the JSON schema, and typos do not."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textvae import recipe_file, recipe_schema, recipe_yaml

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def families():
    from textvae.build import FAMILIES

    return FAMILIES


@pytest.fixture(scope="module")
def schema(families):
    found = recipe_schema.json_schema(families)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.fixture(scope="module")
def validator(schema):
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_checks_and_fits_the_schema_as_written_and_resolved(path, validator, tmp_path):
    from textvae import build

    recipe = recipe_file.load(path, check=build.problems)
    validator.validate(recipe_yaml.read(path))
    validator.validate(recipe_yaml.parse(recipe_file.dump(recipe)))
    (tmp_path / "again.yaml").write_text(recipe_file.dump(recipe), encoding="utf-8")
    assert recipe_file.load(tmp_path / "again.yaml", check=build.problems) == recipe


def test_there_are_shipped_recipes():
    assert "quickstart" in [path.stem for path in RECIPES]


@pytest.mark.parametrize(
    "text",
    [
        "modle: {}",
        "model: {latent_dim: -1}",
        "model: {latent_dm: 3}",
        "model: {encoder: {cell: lstn}}",
        "model: {encoder: {kind: recurent}}",
        "model: {encoder: {kind: recurrent, hiden_dim: 3}}",
        "model: {encoder: {hiden_dim: 3}}",
        "model: {encoder: null}",
        "model: {decoder: {z_to: [start]}}",
        "objective: {kl: {kind: kll}}",
        "objective: {kl: {kind: kl, free_nat: 3}}",
        "objective: {kl: {kind: kl, kernel: imq}}",
        "objective: {kl: {kind: kl, weight: -1}}",
        "objective: {kl: {kind: kl, weight: {kind: liner}}}",
        "objective: {kl: 3}",
        "objective: {kl: {kind: kl, weight: {ovr: 3}}}",
        "training: {optimizer: {kind: adamw, lr: 0}}",
        "training: {decay: {kind: plateau, factr: 1}}",
        "training: {lr_schedule: {kind: cosin}}",
        "tokenizer: {kind: word, vocab_size: 1}",
        "tokenizer: {kind: wrod}",
        "data: {files: {tran: x}}",
        "data: {hub: {nam: x}}",
        "data: {format: doc}",
        "generation: {temperature: 0}",
        "extends: 3",
        "objective: {reconstruction: {kind: crossentropy}}",
    ],
)
def test_the_schema_refuses_a_typo(validator, text):
    assert not validator.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "extends: a.yaml",
        "extends: [a.yaml, b.yaml]",
        "objective: {kl: null}",
        "objective: {kl: {weight: 2}}",
        "objective: {kl: {weight: {over: 3 epochs}}}",
        "training: {decay: null}",
        "data: {hub: {revision: x}}",
        "model: {encoder: {kind: mine.Encoder, anything: [1, 2]}}",
        "objective: {mine: {kind: my.Term, x: 1, weight: 2}}",
        "training: {optimizer: {lr: 0.1}}",
        "{}",
    ],
)
def test_the_schema_takes_what_a_layer_may_say(validator, text):
    assert validator.is_valid(yaml.safe_load(text))


def test_the_schema_knows_every_kind_of_every_family_and_points_nowhere_empty(schema, families):
    text = json.dumps(schema)
    for registry in families.values():
        for kind in registry:
            assert json.dumps({"const": kind}) in text
    pointed = {word.split('"')[0] for word in text.split('"#/$defs/')[1:]}
    assert pointed <= set(schema["$defs"])


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    [
        "no",
        "1e-3",
        "08",
        "+1",
        "~",
        "null",
        "true",
        "0x10",
        "1_0",
        "2024-01-01",
        "a: b",
        " #x",
        "\x85x",
        "a\r\nb",
        "\u2028",
        "\ufeff",
        "x " * 90,
        "- a",
        "'",
        '"',
        "é",
        "😀",
        "=",
        "<<",
        "!x",
        "&x",
        "*x",
        "%x",
        "@x",
        "`x",
        "a\tb",
        " a ",
        "\n",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
# An option's number beyond 2**53 is refused, and no recipe to be dumped.
OPTIONS = VALUES.filter(lambda value: not isinstance(value, int) or abs(value) <= 2**53)

GENERATED = st.fixed_dictionaries(
    {"data": st.just({"grammar": {}}), "training": st.fixed_dictionaries({"max_steps": st.integers(1, 10**9)})},
    optional={
        "name": WORDS,
        "seed": st.integers(0, 2**32 - 1),
        "tokenizer": st.fixed_dictionaries({"kind": WORDS}, optional={"option": OPTIONS}),
        "objective": st.dictionaries(
            st.from_regex(r"[a-z_][a-z0-9-]{0,5}", fullmatch=True),
            st.none()
            | st.fixed_dictionaries(
                {
                    "kind": WORDS,
                    "weight": st.floats(0, 1e300) | st.fixed_dictionaries({"kind": WORDS}, optional={"x": OPTIONS}),
                }
            ),
            max_size=3,
        ),
        "generation": st.fixed_dictionaries({"temperature": st.floats(0, 1e6, exclude_min=True)}),
    },
)


@quick
@given(GENERATED)
def test_a_dumped_recipe_loads_back_equal(tmp_path, values):
    recipe = recipe_file.parse(values)
    (tmp_path / "r.yaml").write_text(recipe_file.dump(recipe), encoding="utf-8")
    assert recipe_file.load(tmp_path / "r.yaml") == recipe


def test_a_dumped_recipe_opens_with_a_comment_and_writes_its_defaults_out():
    text = recipe_file.dump(recipe_file.parse({"data": {"grammar": {}}, "training": {"max_epochs": 1}}))
    assert text.startswith("# ")
    assert "bucket_batches: 100" in text
