"""The YAML of recipes: strict where YAML surprises, and what is written reads back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from textvae import recipe_file, recipe_yaml
from textvae.errors import RecipeError

LEAST = "data: {grammar: {}}\ntraining: {max_epochs: 1}\n"
quick = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("5E2", 500.0),
        ("+7", 7),
        ("010", 10),
        ("08", 8),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        *[
            (word, word)
            for word in ("no", "yes", "on", "off", "y", "2024-01-01", "12:30:00", "0x10", "0o17", "1_000", "=")
        ],
        ("'1'", "1"),
        ('"null"', "null"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        (".", "."),
        ("-", [None]),
        ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_plain_yaml_means_what_it_looks_like(text, value):
    found = recipe_yaml.parse(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' is given twice"),
        ("a:\n  b: 1\n  b: 1", 3, "'b' is given twice"),
        ("a: 1\n\tb: 2", 2, "\\t"),
        ("a: [1", 1, "expected"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("a: 1\nb: &x [1]", 2, "anchors"),
        ("a: &x 1\nb: *x", 1, "anchors"),
        ("a: *x", 1, "aliases"),
        ("a: 1\nb: !!bool foo", 2, "tags"),
        ("a: !!python/object/apply:os.system [ls]", 1, "tags"),
        ("a: !!map [x]", 1, "tags"),
        ("a: !x 1", 1, "tags"),
        ("1: a", 1, "keys are text"),
        ("x: 1\ntrue: a", 2, "keys are text"),
        ("null: a", 1, "keys are text"),
        ("? [a]\n: b", 1, "keys are text"),
        ("a: .nan", 1, "no finite number"),
        ("a: -.inf", 1, "no finite number"),
        ("a: 1e999", 1, "no finite number"),
        ("a: " + "9" * 31, 1, "more than 30 digits"),
        ("a: " + "[" * 25 + "]" * 25, 1, "nested more than 20 deep"),
        ("a: 1\nb: 'x\x00'", 2, "U+0000"),
        ('a: 1\nb: "\\U00110000"', 2, "an escape that is no character"),
        ('a: "\\UFFFFFFFF"', 1, "an escape that is no character"),
        ('a: 1\nb: "\\0"', 2, "U+0000"),
        ('a: "\\ud800"', 1, "U+D800"),
        ("a: \x1b[0m", 1, "U+001B"),
        ("a: 1\n---\nb: 2", 2, "document"),
    ],
)
def test_yaml_that_a_recipe_may_not_hold_is_an_error_with_its_line(text, line, expected):
    with pytest.raises(recipe_yaml.YamlError) as caught:
        recipe_yaml.parse(text)
    assert str(caught.value).startswith(f"line {line}, column ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a: 1\nb: \xff", "line 2: is not UTF-8 (byte 0xff)"),
        ("a: 1".encode("utf-16"), "line 1: is not UTF-8"),
        (b"# " + b"x" * 2**20, "1,048,576 bytes"),
        (b"- a\n- b", "a recipe is a mapping of keys"),
        (b"just text", "a recipe is a mapping of keys"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(tmp_path, data, expected):
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=r"r\.yaml") as caught:
        recipe_file.load(tmp_path / "r.yaml")
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "x" * 3000, "a\0b"])
def test_a_file_that_cannot_be_read_says_so(tmp_path, name):
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe_file.load(str(tmp_path) + "/" + name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "r.yaml").write_text(LEAST, encoding="utf-8-sig")
    assert recipe_file.load(tmp_path / "r.yaml").training.max_epochs == 1


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


@quick
@given(VALUES)
def test_what_is_written_reads_back_equal_here_and_in_any_yaml_reader(value):
    text = recipe_yaml.write({"value": value})
    assert recipe_yaml.parse(text) == {"value": value}
    assert yaml.safe_load(text) == {"value": value}
