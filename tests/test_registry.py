"""The registry: from a section's keys to an object, and one good message for each mistake."""

import io
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field

from textvae.errors import UserError
from textvae.registry import Registry, UntrustedCodeError
from textvae.text import tokenizers


class Ball:
    def __init__(
        self,
        size: int,
        *,
        color: Literal["red", "blue"] = "red",
        weight: Annotated[float, Field(gt=0)] = 1.0,
        at: tuple[float, float] = (0.0, 0.0),
        marks: list[int] | str | None = None,
    ) -> None:
        self.size, self.color, self.weight, self.at, self.marks = size, color, weight, at, marks


class Stone:
    def __init__(self, size: int, *, grain: int) -> None:
        self.size, self.grain = size, grain


def pebble(size: int, *, grain: int = 3) -> tuple[int, int]:
    return size, grain


THINGS = Registry(
    "thing", {"ball": Ball, "stone": Stone, "pebble": pebble, "late": "fractions:Fraction"}, default="ball"
)


def test_options_reach_the_constructor_and_the_rest_keep_the_signatures_defaults():
    ball = THINGS.build({"kind": "ball", "color": "blue", "weight": 2}, 7)
    assert (ball.size, ball.color, ball.weight, ball.at) == (7, "blue", 2.0, (0.0, 0.0))
    assert isinstance(ball.weight, float)


def test_a_section_without_kind_is_the_default_kind():
    assert isinstance(THINGS.build({}, 1), Ball)


def test_a_function_stands_for_a_class():
    assert THINGS.build({"kind": "pebble", "grain": 5}, 1) == (1, 5)


def test_a_list_of_the_recipe_becomes_the_tuple_that_the_signature_wants():
    assert THINGS.build({"at": [1, 2.5]}, 1).at == (1.0, 2.5)


def test_a_kind_named_by_module_is_imported_when_it_is_used():
    from fractions import Fraction

    assert THINGS.resolve("late") is Fraction


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"kind": "bal"},
            "t.kind: got 'bal', which is no thing; known: ball, late, pebble, stone. Did you mean 'ball'?",
        ),
        ({"kind": 3}, "t.kind: got 3, a thing needs a name; known: ball, late, pebble, stone"),
        ({"kind": None}, "t.kind: got null, a thing needs a name; known: ball, late, pebble, stone"),
        ({"colour": "red"}, "t.colour: unknown key; known: at, color, marks, weight. Did you mean 'color'?"),
        ({"size": 1}, "t.size: unknown key; known: at, color, marks, weight"),
        ({"color": "bleu"}, "t.color: got 'bleu'; known: blue, red. Did you mean 'blue'?"),
        ({"color": True}, "t.color: got true; known: blue, red"),
        ({"weight": 0}, "t.weight: got 0; should be greater than 0"),
        ({"weight": "1"}, "t.weight: got '1'; should be a number"),
        ({"weight": float("nan")}, "t.weight: got nan; should be a finite number"),
        ({"at": [1, "x"]}, "t.at.1: got 'x'; should be a number"),
        ({"at": 3}, "t.at: got 3; should be a list"),
        ({"marks": [1, 2.5]}, "t.marks.1: got 2.5; should be a whole number"),
        ({"marks": 3}, "t.marks: got 3; should be a list or text"),
        ({"kind": "stone"}, "t.grain: is missing and has no default"),
    ],
)
def test_a_mistake_is_named_with_its_key_what_was_found_and_what_is_allowed(section, expected):
    assert THINGS.problems(section, "t") == [expected]
    with pytest.raises(UserError) as caught:
        THINGS.build(section, 1, path="t")
    assert str(caught.value) == expected


def test_all_mistakes_of_a_section_are_told_at_once():
    assert len(THINGS.problems({"weight": -1, "color": "green", "colr": 1}, "t")) == 3


def test_a_long_value_is_cut_in_the_message():
    (message,) = THINGS.problems({"weight": "x" * 500}, "t")
    assert "..." in message
    assert len(message) < 130


def test_a_users_own_class_stands_by_dotted_path(tmp_path, monkeypatch):
    source = "class Cube:\n    def __init__(self, size, *, edge: int = 1):\n        self.edge = edge\n"
    (tmp_path / "mine_of_test_registry.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert THINGS.build({"kind": "mine_of_test_registry.Cube", "edge": 4}, 1).edge == 4
    assert THINGS.problems({"kind": "mine_of_test_registry.Cube", "egde": 4}, "t") == [
        "t.egde: unknown key; known: edge. Did you mean 'edge'?"
    ]
    assert sys.path == before


@pytest.mark.parametrize("kind", [".", "a.", ".a", "..a", "a..b", "no_such_module.X", "os.no_such_class", "os.sep"])
def test_a_dotted_path_that_leads_to_no_class_is_an_error_with_the_path(kind):
    (message,) = THINGS.problems({"kind": kind}, "t")
    assert message.startswith("t.kind: ")
    assert repr(kind) in message


def test_foreign_code_is_not_imported_without_trust(tmp_path, monkeypatch):
    (tmp_path / "hostile_of_test_registry.py").write_text("raise SystemExit('ran')\n")
    monkeypatch.chdir(tmp_path)
    section = {"kind": "hostile_of_test_registry.X"}
    assert "--trust-code" in THINGS.problems(section, "t", trust_code=False)[0]
    with pytest.raises(UntrustedCodeError):
        THINGS.resolve(section["kind"], trust_code=False)
    assert "hostile_of_test_registry" not in sys.modules


@pytest.mark.parametrize("kind", ["os.system", "builtins.SystemExit", "builtins.input", "collections.abc.Mapping"])
def test_a_dotted_path_to_what_is_no_tokenizer_is_an_error_with_its_key(kind, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match=rf"tokenizer\.kind: {kind}"):
        tokenizers.train({"kind": kind}, ["a b"])
