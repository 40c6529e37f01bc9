"""Any recipe is a Recipe or a UserError: never another exception, a hang, or memory asked for."""

import contextlib
import copy
import functools
import json
import re
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textvae import build, recipe_file
from textvae.errors import UserError
from textvae.recipe import LARGEST, LARGEST_OF, Recipe

SHIPPED = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))}
LEAST = {"data": {"grammar": {}}, "training": {"max_steps": 1}}

SECONDS = 60  # no recipe takes one; more is a hang

fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
long_fuzz = settings(fuzz, max_examples=20_000)


@contextlib.contextmanager
def ended(seconds: int):
    """Raises where what stands in it takes longer."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(text: str, folder) -> Recipe | UserError:
    """What a recipe's text gives; anything else than these two is raised."""
    (folder / "r.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with ended(SECONDS):
            recipe = recipe_file.load(
                folder / "r.yaml",
                check=functools.partial(build.problems, trust_code=False),
                check_sections=functools.partial(build.section_problems, trust_code=False),
            )
    except UserError as error:
        return error
    assert recipe_file.parse(recipe.resolved()) == recipe  # what is taken can be written and read back
    return recipe


# Words of recipes, so that some of what is drawn gets beyond the first check.
WORDS = sorted({word for text in SHIPPED.values() for word in text.replace(":", " ").split() if word.isidentifier()})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 10**6, 10**12, 10**29, 2**63]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.sampled_from(
        ["os.system", "builtins.dict", "a..b", "1e-3", "10 epochs", "-1 epochs", "1e308 epochs", "kl.", "."]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
VALUES = st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)) | st.sampled_from(WORDS), TREES, max_size=5)


@fuzz
@given(st.text(max_size=200))
def test_any_text_as_a_recipe(tmp_path, text):
    outcome(text, tmp_path)


@fuzz
@given(VALUES)
def test_any_values_as_a_recipe(tmp_path, values):
    outcome(yaml.safe_dump(values, allow_unicode=True), tmp_path)


def paths(values, before=()) -> list[tuple]:
    """The key paths of all that stands in a recipe."""
    found = []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        found += [(*before, key), *paths(value, (*before, key))]
    return found


@st.composite
def mutated(draw) -> dict:
    """A shipped recipe in which up to three values are others, gone, or moved somewhere else."""
    values = copy.deepcopy(yaml.safe_load(SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))]))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(paths(values) or [("data",)]))
        holder = values
        for key in way:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            holder[last] = draw(TREES)
        elif action == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(WORDS))] = draw(TREES)
    return values


@fuzz
@given(mutated())
def test_shipped_recipes_with_values_changed(tmp_path, values):
    outcome(yaml.safe_dump(values, allow_unicode=True), tmp_path)


@fuzz
@given(st.sampled_from(sorted(SHIPPED)), st.data())
def test_shipped_recipes_with_characters_changed(tmp_path, name, data):
    text = list(SHIPPED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.characters() | st.sampled_from(list(":{}[]-#&*!|>'\"%@`\n\t ,?")))
    outcome("".join(text), tmp_path)


@pytest.mark.slow
@long_fuzz
@given(st.text(max_size=300) | VALUES | mutated())
def test_any_recipe_at_length(tmp_path, drawn):
    outcome(drawn if isinstance(drawn, str) else yaml.safe_dump(drawn, allow_unicode=True), tmp_path)


HOSTILE = {
    "model.latent_dim": 10**12,
    "model.embedding_dim": 10**12,
    "model.encoder.hidden_dim": 10**12,
    "model.encoder.layers": 10**9,
    "model.decoder.layers": 10**9,
    "model.decoder.hidden_dim": 10**28,
    "tokenizer.vocab_size": 10**12,
    "data.grammar.train": 10**12,
    "data.shuffle_buffer": 10**12,
    "training.batch_size": 10**15,
    "training.accumulation": 10**15,
    "training.threads": 10**9,
    "training.max_steps": 10**25,
    "training.evaluate_every": "1e300 epochs",
    "generation.beam_size": 10**9,
    "generation.max_length": 10**12,
    "evaluation.iw_samples": 10**15,
    "objective.kl.free_nats": 10**20,
    "objective.kl.weight.over": 10**20,
    "objective": {"x": {"kind": "sinkhorn", "iterations": 10**9}},
    "model.prior": {"kind": "mixture", "components": 10**12},
    "model.posterior": {"kind": "flow", "transforms": 10**9},
}
WHERE = {"objective": "objective.x.iterations", "model.prior": "model.prior.components"}
WHERE["model.posterior"] = "model.posterior.transforms"


def test_hostile_sizes_are_refused_by_key_path_before_memory_is_asked_for():
    # In a process that has no memory to give: 4 GiB of addresses, of which torch alone takes most.
    code = (
        "import json, resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "from textvae import build, recipe_file\n"
        "for key, value in json.loads(sys.argv[2]).items():\n"
        "    try:\n        recipe_file.load(sys.argv[1], [f'{key}={json.dumps(value)}'], check=build.problems)\n"
        "        print('taken')\n"
        "    except Exception as error:\n        print(type(error).__name__, str(error).replace(chr(10), ' '))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "recipes" / "quickstart.yaml"), json.dumps(HOSTILE)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    for (key, value), line in zip(HOSTILE.items(), finished.stdout.splitlines(), strict=True):
        assert line.startswith("RecipeError "), (key, line)
        where = WHERE.get(key, key)
        assert f"{where}: got " in line, (key, line)
        assert isinstance(value, str) or "at most" in line, (key, line)


def test_every_option_that_makes_something_large_has_a_bound():
    # A new class with a size of a new name would have none.
    sizes = {"hidden_dim", "layers", "components", "transforms", "projections", "vocab_size", "samples", "latent_dim"}
    assert sizes <= set(LARGEST_OF)
    found = set()
    for registry in build.FAMILIES.values():
        for kind in registry:
            fields = registry.options(kind).model_fields.items()
            found |= {n for n, f in fields if re.search("dim$|layers|size$|ents$", n) and "int" in str(f.annotation)}
    assert {"hidden_dim", "components"} <= found
    assert found <= set(LARGEST_OF), found - set(LARGEST_OF)


def test_the_bounds_take_what_is_of_use():
    for name, largest in LARGEST_OF.items():
        assert largest < LARGEST, name
    large = {"latent_dim": 4096, "embedding_dim": 4096, "encoder": {"hidden_dim": 8192, "layers": 8}}
    recipe_file.parse({**LEAST, "model": large, "tokenizer": {"kind": "bpe", "vocab_size": 500_000}})
    recipe_file.parse({**LEAST, "data": {"grammar": {"train": 50_000_000}}, "evaluation": {"iw_samples": 50_000}})
