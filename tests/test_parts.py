"""The list of what a recipe can name: complete, true to the signatures, and fit for a terminal."""

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field

from textvae.build import FAMILIES
from textvae.errors import UserError
from textvae.parts import parts, table
from textvae.registry import Registry
from textvae.schedules import Duration


class Ball:
    """Rolls, e.g. down 0.5 of a hill (Newton 1687, arXiv 1234.56789). It has a color.

    Args:
        size: how large.
        grain: how rough; "fine: 1" is
            the finest.
        at (floats): where it lies.

    References:
        Galilei 1638, arXiv:0001.00001; Newton again, arXiv
        1234.56789.
    """

    def __init__(
        self,
        size: int,
        *,
        grain: int,
        color: Literal["red", "blue"] = "red",
        weight: Annotated[float, Field(gt=0, le=2)] = 1.0,
        marks: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.5, 0.9],  # noqa: B006
        after: Duration | None = None,
        over: Duration = 5,
        name: str | int = "",
        at: tuple[float, float] = (0.0, 1.5),
        bounces: bool = True,
    ) -> None: ...


class Undocumented(Ball):
    def __init__(self, size: int, *, grain: int = 2) -> None: ...


def pebble(size: int, *, grain: int = 3) -> int:
    """Returns a pebble."""
    return grain


THINGS = Registry("thing", {"ball": Ball, "bare": Undocumented, "pebble": pebble}, default="pebble")


def test_a_kind_is_described_by_its_signature_and_docstring():
    ball, bare, stone = parts({"model.thing": THINGS})
    assert {name: ball[name] for name in ("family", "kind", "key", "default", "needs")} == {
        "family": "thing",
        "kind": "ball",
        "key": "model.thing",
        "default": False,
        "needs": "",
    }
    assert ball["summary"] == "Rolls, e.g. down 0.5 of a hill (Newton 1687, arXiv 1234.56789)."
    assert ball["paper"] == "1234.56789, 0001.00001"
    found = {
        o["name"]: (o["type"], o["bounds"], "required" if o["required"] else o["default"]) for o in ball["options"]
    }
    assert found == {
        "grain": ("integer", "", "required"),
        "color": ("red | blue", "", "red"),
        "weight": ("number", "> 0, <= 2", 1.0),
        "marks": ("list of number", "length 2, each >= 0, < 1", [0.5, 0.9]),
        "after": ("duration | null", "", None),
        "over": ("duration", "", 5),
        "name": ("text | integer", "", ""),
        "at": ("list of number", "length 2", [0.0, 1.5]),
        "bounces": ("boolean", "", True),
    }
    meanings = {o["name"]: o["meaning"] for o in ball["options"]}
    assert (meanings["grain"], meanings["at"]) == ('how rough; "fine: 1" is the finest', "where it lies")
    assert (meanings["color"], meanings["name"]) == ("", "")
    assert (bare["summary"], bare["paper"]) == ("", "")
    assert bare["options"][0]["meaning"] == meanings["grain"]
    assert (stone["summary"], stone["default"], [o["name"] for o in stone["options"]]) == ("A pebble.", True, ["grain"])


def test_every_kind_of_every_family_is_there_with_all_its_options():
    rows = parts(FAMILIES)
    assert [(row["key"], row["kind"]) for row in rows] == [(key, kind) for key in FAMILIES for kind in FAMILIES[key]]
    for row in rows:
        if not row["needs"]:
            options = FAMILIES[row["key"]].options(row["kind"]).model_fields
            assert [option["name"] for option in row["options"]] == list(options)
            assert row["summary"]
    assert json.loads(json.dumps(rows)) == rows


def test_the_table_fits_a_terminal_and_leaves_nothing_out():
    rows = parts({**FAMILIES, "model.thing": THINGS})
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 110
    assert not any(line != line.rstrip() for line in lines)
    words = set(" ".join(lines).split())
    for row in rows:
        assert {row["kind"], row["key"], *(option["name"] for option in row["options"])} <= words
    assert table([]) == ""


def test_the_table_looks_like_this():
    assert table(parts({"thing": THINGS})) == (
        """thing

  ball
      Rolls, e.g. down 0.5 of a hill (Newton 1687, arXiv 1234.56789).
      grain    required    integer
      color    red         red | blue
      weight   1           number, > 0, <= 2
      marks    [0.5, 0.9]  list of number, length 2, each >= 0, < 1
      after    null        duration | null
      over     5           duration
      name     ""          text | integer
      at       [0, 1.5]    list of number, length 2
      bounces  true        boolean
      arXiv 1234.56789, 0001.00001

  bare
      grain  2  integer

  pebble (default)
      A pebble.
      grain  3  integer

A duration is a number of steps, or text as "10 epochs".
"""
    )


def test_the_table_tells_what_the_options_mean_where_it_is_asked_to():
    lines = table(parts({"thing": THINGS}), meanings=True).splitlines()
    place = lines.index("      grain    required    integer")
    assert lines[place + 1 : place + 3] == [
        "                           " + 'how rough; "fine: 1" is the finest',
        "      color    red         red | blue",
    ]
    everything = table(parts(FAMILIES), meanings=True).splitlines()
    assert max(map(len, everything)) <= 110


def test_one_family_is_found_by_name_or_key():
    families = {"model.thing": THINGS, "model.other": Registry("other", {"ball": Ball})}
    assert {row["key"] for row in parts(families, "thing")} == {"model.thing"}
    assert {row["key"] for row in parts(families, "model.other")} == {"model.other"}
    with pytest.raises(UserError, match="Did you mean 'thing'"):
        parts(families, "thong")


def test_a_kind_whose_library_is_absent_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "textvae_test_plain.py").write_text("import absent_library.flows\n")
    (tmp_path / "textvae_test_unknown.py").write_text("import unknown_library\n")
    (tmp_path / "textvae_test_kind.py").write_text(
        "from textvae.errors import MissingExtraError\nraise MissingExtraError('zuko', 'flows', 'for flows')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("textvae.parts.metadata.requires", lambda _: ["torch>=2", "Absent-Library>=1; extra == 'sky'"])
    modules = {name: f"textvae_test_{name}:Thing" for name in ("plain", "kind", "unknown")}
    rows = parts({"thing": Registry("thing", {**modules, "ball": Ball})})
    with pytest.raises(ModuleNotFoundError):  # a module of textvae's own that is absent is a mistake in textvae
        parts({"thing": Registry("thing", {"lost": "textvae.lost:Thing"})})
    plain, kind, unknown, ball = rows
    assert "pip install 'textvae[sky]'" in plain["needs"]
    assert "pip install 'textvae[flows]'" in kind["needs"]
    assert "unknown_library" in unknown["needs"]
    assert (plain["options"], plain["summary"], ball["needs"]) == ([], "", "")
    assert "textvae[sky]" in table(rows)
