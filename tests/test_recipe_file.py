"""Recipe files: layers that merge, paths, and overrides of the command line."""

import copy
import datetime
import json
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textvae import recipe_file
from textvae.errors import RecipeError

DATA = "data: {grammar: {}}\n"
LEAST = DATA + "training: {max_epochs: 1}\n"
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path):
    """Returns a function that loads a recipe text, after writing the other files it is given."""

    def load(text, *overrides, check=None, **others):
        for name, content in {"r": text, **others}.items():
            (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
        return recipe_file.load(tmp_path / "r.yaml", overrides, check=check)

    return load


@pytest.fixture
def problems(read):
    """Returns a function to the problems of a recipe text."""

    def find(text, *overrides, **others):
        with pytest.raises(RecipeError) as caught:
            read(text, *overrides, **others)
        return list(caught.value.problems)

    return find


def test_reading_recipes_imports_no_torch():
    code = "import sys, textvae.recipe_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_lies_over_the_one_it_extends(read):
    recipe = read("extends: base.yaml\nseed: 2", base=LEAST + "seed: 1\nname: base")
    assert (recipe.seed, recipe.name) == (2, "base")


def test_of_several_parents_the_later_wins_and_a_common_one_is_laid_once(read):
    recipe = read(
        "extends: [left.yaml, right.yaml]",
        left="extends: base.yaml\nseed: 5",
        right="extends: base.yaml\nname: right",
        base=LEAST + "seed: 1\nname: base",
    )
    assert (recipe.seed, recipe.name) == (5, "right")


def test_a_circle_is_an_error_that_names_the_chain(problems, tmp_path):
    (problem,) = problems("extends: a.yaml", a="extends: b.yaml", b="extends: r.yaml")
    names = " -> ".join(str(tmp_path / f"{name}.yaml") for name in ("r", "a", "b", "r"))
    assert problem == f"extends: goes in a circle: {names}"


def test_a_missing_parent_is_an_error_that_names_the_chain(problems, tmp_path):
    (problem,) = problems("extends: a.yaml", a="extends: nowhere.yaml")
    assert problem.startswith(
        f"extends: {tmp_path}/nowhere.yaml does not exist: {tmp_path}/r.yaml -> {tmp_path}/a.yaml"
    )


def test_a_broken_parent_is_named_with_its_line(read, tmp_path):
    with pytest.raises(RecipeError) as caught:
        read("extends: a.yaml", a="x: 1\nx: 2")
    assert str(caught.value).startswith(f"{tmp_path}/a.yaml: line 2, column 1: the key 'x' is given twice (extended: ")


def test_many_files_that_extend_each_other_twice_are_read_once_each(read):
    # 2^17 readings if a common parent were read again for each child.
    others = {f"n{i}": f"extends: [n{i + 1}.yaml, m{i + 1}.yaml]" for i in range(17)}
    others |= {f"m{i}": f"extends: [n{i + 1}.yaml, m{i + 1}.yaml]" for i in range(1, 17)}
    start = time.monotonic()
    assert read("extends: n0.yaml", **others, n17=LEAST, m17="seed: 3").seed == 3
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("written", ["3", "[1]", "{a: b}", "['']", "null"])
def test_extends_names_files(problems, written):
    assert problems(f"extends: {written}")[0].startswith("extends: got ")


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
LAYERS = st.dictionaries(st.sampled_from("abcd"), TREES, max_size=4)


@quick
@given(LAYERS, LAYERS)
def test_merging_changes_neither_side_and_holds_all_that_the_later_says(base, layer):
    before = copy.deepcopy((base, layer))
    merged = recipe_file.merge(base, layer)
    assert (base, layer) == before
    assert recipe_file.merge(merged, layer) == merged
    assert recipe_file.merge(base, {}) == base
    assert recipe_file.merge({}, layer) == layer


@quick
@given(LAYERS, LAYERS, LAYERS)
def test_merging_where_keys_stay_mappings_or_values_is_associative(a, b, c):
    # Typed by key, as in a recipe: a and b hold mappings, c and d values.
    def typed(tree):
        return {k: typed(v if isinstance(v, dict) else {}) if k in "ab" else str(v) for k, v in tree.items()}

    a, b, c = map(typed, (a, b, c))
    merge = recipe_file.merge
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


def test_another_kind_replaces_the_section_and_the_same_kind_merges_into_it():
    base = {"tokenizer": {"kind": "word", "vocab_size": 10}}
    assert recipe_file.merge(base, {"tokenizer": {"kind": "byte"}}) == {"tokenizer": {"kind": "byte"}}
    same = recipe_file.merge(base, {"tokenizer": {"kind": "word", "min_frequency": 2}})
    assert same == {"tokenizer": {"kind": "word", "vocab_size": 10, "min_frequency": 2}}


def test_a_base_that_names_no_kind_is_of_the_default_kind(read):
    base = LEAST + "model: {encoder: {cell: gru}}\ntokenizer: {vocab_size: 9}\nobjective: {reconstruction: {old: 1}}"
    other = read(
        "extends: base.yaml\nmodel: {encoder: {kind: my.Encoder}}\ntokenizer: {kind: byte}\n"
        "objective: {reconstruction: {kind: my.Loss}}",
        base=base,
    )
    assert other.model.encoder.as_dict() == {"kind": "my.Encoder"}
    assert other.tokenizer.as_dict() == {"kind": "byte"}
    assert other.objective.reconstruction.as_dict() == {"kind": "my.Loss"}
    same = read("extends: base.yaml\nmodel: {encoder: {kind: recurrent}}", base=base)
    assert same.model.encoder.as_dict() == {"kind": "recurrent", "cell": "gru"}


def test_a_section_set_to_null_is_null(read):
    base = LEAST + "objective: {kl: {kind: kl}, mmd: {kind: mmd}}\ngeneration: {top_k: 5}"
    recipe = read("extends: base.yaml\nobjective: {kl: null}\ngeneration: {top_k: null}", base=base)
    assert list(recipe.objective.terms) == ["mmd"]
    assert recipe.generation.top_k is None


def test_a_weight_that_was_a_number_may_become_a_schedule_and_back(read):
    base = LEAST + "objective: {kl: {kind: kl, weight: 0.5, free_nats: 1}}"
    schedule = read("extends: base.yaml\nobjective: {kl: {weight: {kind: linear, over: 9}}}", base=base)
    assert schedule.objective.terms["kl"].weight.as_dict() == {"kind": "linear", "over": 9}
    assert schedule.objective.terms["kl"].free_nats == 1
    assert read("extends: r0.yaml", "objective.kl.weight=2", r0=base).objective.terms["kl"].weight == 2


SOURCES = {"hub": {"name": "h"}, "files": {"train": "/t.txt"}, "folder": "/f", "grammar": {"seed": 1}}


@pytest.mark.parametrize("old", SOURCES)
@pytest.mark.parametrize("new", SOURCES)
def test_a_new_source_puts_out_the_old_one_and_what_described_it(read, old, new):
    if old == new:
        return
    described = {"hub": {"splits": {"test": "t"}, "column": "c"}, "files": {"format": "csv", "column": "c"}}
    base = {"data": {old: SOURCES[old], "limit": {"train": 5}, **described.get(old, {})}, "training": {"max_epochs": 1}}
    data = read(f"extends: base.yaml\ndata: {json.dumps({new: SOURCES[new]})}", base=json.dumps(base)).data
    assert data.source == new
    assert (data.splits, data.column, data.format, data.limit) == (None, None, None, {"train": 5})


def test_what_describes_a_new_source_is_taken_from_its_own_layer(read):
    base = LEAST.replace("{grammar: {}}", "{hub: {name: h}, column: old, validation_fraction: 0.2}")
    data = read("extends: base.yaml\ndata: {files: {train: /a.csv}, column: new}", base=base).data
    assert (data.column, data.validation_fraction) == ("new", None)


def test_another_data_set_of_the_hub_takes_nothing_from_the_first(read):
    base = LEAST.replace("{grammar: {}}", "{hub: {name: a, config: c, revision: r}, column: old}")
    data = read("extends: base.yaml\ndata: {hub: {name: b}}", base=base).data
    assert (data.hub.model_dump(), data.column) == ({"name": "b", "config": None, "revision": None}, None)


def test_a_detail_of_the_same_source_leaves_the_rest_as_it_was(read):
    hub = LEAST.replace("{grammar: {}}", "{hub: {name: a, config: c}, column: old}")
    data = read(hub, "data.hub.revision=r").data
    assert (data.hub.model_dump(), data.column) == ({"name": "a", "config": "c", "revision": "r"}, "old")
    files = LEAST.replace("{grammar: {}}", "{files: {train: /a, test: /b}, format: csv, validation_fraction: 0.2}")
    data = read(files, "data.files.train=/c").data
    assert (data.files, data.format, data.validation_fraction) == ({"train": "/c", "test": "/b"}, "csv", 0.2)


def test_two_sources_in_one_layer_are_an_error_even_under_a_layer_that_chooses(problems, read, tmp_path):
    expected = "data: got files and folder; exactly one source is needed: hub, files, folder, grammar"
    both = "data: {files: {train: a}, folder: b}"
    assert problems(both) == [expected]
    assert problems("extends: base.yaml\ndata: {folder: x}", base=both) == [expected]
    assert problems(LEAST, "data.files={train: a}", "data.folder=b") == [expected]


def test_paths_of_a_file_are_relative_to_it_and_those_of_overrides_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text(
        "data: {files: {train: [a.txt, ../b.txt], test: /c.txt}}\n"
        "tokenizer: {kind: file, path: tok.json}\ntraining: {max_epochs: 1}"
    )
    (tmp_path / "r.yaml").write_text("extends: deep/base.yaml")
    monkeypatch.chdir(tmp_path / "here")
    recipe = recipe_file.load("../r.yaml", ["data.files.validation=v.txt"])
    assert recipe.data.files == {
        "train": [f"{tmp_path}/deep/a.txt", f"{tmp_path}/b.txt"],
        "test": "/c.txt",
        "validation": f"{tmp_path}/here/v.txt",
    }
    assert recipe.tokenizer.as_dict()["path"] == f"{tmp_path}/deep/tok.json"
    assert recipe_file.load("../r.yaml", ["data.folder=.."]).data.folder == str(tmp_path)
    assert recipe_file.load("../r.yaml", ["data.folder=f/"]).data.folder == f"{tmp_path}/here/f"


def test_the_home_folder_is_put_in_for_a_tilde(read, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = read(LEAST, "data.files.train=~/x.txt")
    assert recipe.data.files["train"] == f"{tmp_path}/home/x.txt"


def test_a_link_keeps_its_name_whose_ending_tells_the_format(read, tmp_path):
    (tmp_path / "blob").write_text("a\n")
    (tmp_path / "train.txt").symlink_to("blob")
    recipe = read("data: {files: {train: train.txt}}\ntraining: {max_epochs: 1}")
    assert recipe.data.files["train"] == f"{tmp_path}/train.txt"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=a", "a"),
        ("name=", ""),
        ("name=no", "no"),
        ("name='5'", "5"),
        ("name=a=b", "a=b"),
        ("name='a #1'", "a #1"),
        ("seed=7", 7),
        (" seed = 7 ", 7),
        ("training.gradient_clip=1e-3", 1e-3),
        ("training.gradient_clip=null", None),
        ("data.lowercase=true", True),
        ("data.limit={train: 5, test: 6}", {"train": 5, "test": 6}),
        ("training.trackers=[tensorboard]", ["tensorboard"]),
        ("training.evaluate_every=2 epochs", "2 epochs"),
    ],
)
def test_an_overrides_value_is_yaml(read, override, value):
    found = read(LEAST, override)
    for key in override.split("=")[0].strip().split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_files_are_given_as_scripts_give_them(read, tmp_path):
    data = read(LEAST, f"data.files={{train: {tmp_path}/a.gz, validation: b, test: 'c: d'}}", "data.column=text").data
    assert data.files["train"] == f"{tmp_path}/a.gz"
    assert data.files["test"].endswith("/c: d")
    assert data.column == "text"


@pytest.mark.parametrize(
    "override", ["seed", "", "=3", ".seed=3", "seed.=3", "a..b=3", "a b=3", "--seed=3", ".".join("a" * 30) + "=1"]
)
def test_a_malformed_override_is_an_error_with_an_example(problems, override):
    assert problems(LEAST, override) == [f"{override!r}: an override is key.path=value, as training.max_steps=1000"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.latent_dim=1", "model=2"),
        ("model=2", "model.latent_dim=1"),
        ("seed=1", "seed=1"),
        ("data.files={train: a}", "data.files.train=b"),
        ("objective.kl=null", "objective.kl.weight=2"),
    ],
)
def test_overrides_that_contradict_each_other_are_an_error(problems, overrides):
    (problem,) = problems(LEAST, *overrides)
    assert "is given twice" in problem


def test_overrides_of_one_call_are_one_layer(read):
    data = read(LEAST, "data.files.train=/a", "data.files={test: /b}", "data.format=csv").data
    assert data.files == {"train": "/a", "test": "/b"}
    assert data.format == "csv"


@pytest.mark.parametrize(
    "override", ["data.files={train: a: b.txt}", "name=#5", "name=a #1", "name=[1", "name=*x", "name=a: b: c"]
)
def test_a_value_that_yaml_reads_otherwise_says_how_to_quote_it(problems, override):
    (problem,) = problems(LEAST, override)
    assert problem.startswith(override.split("=")[0] + ": ")
    assert "quote" in problem


def test_a_colon_without_its_space_is_told(problems):
    (problem,) = problems(LEAST, "data.files={train:a.txt,test:b.txt}")
    assert problem == "data.files: 'train:a.txt' needs a space after the colon, as in {train: a.txt}"


def test_extends_is_no_override(problems):
    assert problems(LEAST, "extends=x.yaml")[0].startswith("extends: stands in a recipe file")


def test_all_bad_overrides_are_told_at_once_as_the_command_lines(read):
    with pytest.raises(RecipeError) as caught:
        read(LEAST, "a", "name=[1", "seed=1", "seed=2")
    assert len(caught.value.problems) == 3
    assert caught.value.source == "command line"


def test_dates_stay_text_all_the_way(read):
    assert read(LEAST + "name: 2024-01-01").name == str(datetime.date(2024, 1, 1))
