"""Recipes as people write them: YAML files that extend one another, overrides from the command line, a JSON schema."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic

from textvae import recipe_yaml
from textvae.errors import RecipeError, UserError
from textvae.recipe import SOURCES, Recipe
from textvae.registry import problems_of

COMMAND_LINE = "command line"
LONGEST_CHAIN = 20
# What describes a source of sentences and is wrong for another one.
OF_THE_SOURCE = ("splits", "column", "format", "validation_fraction")
HEAD = "# A textvae recipe with every default written out.\n"

_KEY = re.compile(r"\w[\w-]*")
_NULLS = ("~", "null", "Null", "NULL")

Frozen = TypeVar("Frozen", bound=pydantic.BaseModel)


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check: Callable[[Recipe], list[str]] | None = None,
    check_sections: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file.
        overrides: "key.path=value" each, the value in YAML; together they are the last layer.
        check: returns what else is wrong with the recipe, one message a problem, each opening with its key path.
        check_sections: the same of plain values that are no recipe for another reason, so that all is said at once.

    Raises:
        RecipeError: everything that is wrong with it, each message with its key path.
    """
    source = str(path)
    layers: list[_Layer] = []
    _read_layers(Path(path), (), layers)
    if overrides:
        layers.append(_Layer(COMMAND_LINE, _override_layer(overrides)))
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
    try:
        recipe = parse(merged, source)
    except RecipeError as error:
        said = {_key(problem) for problem in error.problems}
        more = check_sections(merged) if check_sections else []
        problems = [*error.problems, *(problem for problem in more if _key(problem) not in said)]
        raise RecipeError([_with_origin(problem, layers, source) for problem in problems], source) from None
    found = check(recipe) if check else []
    if found:
        raise RecipeError([_with_origin(problem, layers, source) for problem in found], source)
    return recipe


def parse(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Returns the recipe of plain values, as a file holds them.

    Raises:
        RecipeError: everything that is wrong with them.
    """
    shaped = dict(values)
    objective = shaped.get("objective")
    if isinstance(objective, Mapping):
        terms = {name: term for name, term in objective.items() if name != "reconstruction" and term is not None}
        rest = {name: section for name, section in objective.items() if name == "reconstruction"}
        shaped["objective"] = {**rest, "terms": terms}
    try:
        # Through JSON, where strict validation takes a list for a tuple, but no "5" for a 5.
        return Recipe.model_validate_json(json.dumps(shaped, allow_nan=False))
    except pydantic.ValidationError as error:
        found = problems_of(error, Recipe, values=shaped)
        # A file has the terms beside `reconstruction`, and so has a message.
        found = [re.sub(r"^objective\.terms\.", "objective.", problem) for problem in found]
        raise RecipeError(found, source) from error
    except (TypeError, ValueError) as error:
        raise RecipeError([f"holds a value that no recipe can hold ({error})"], source) from error


def with_options(settings: Frozen, options: Mapping[str, Any], path: str) -> Frozen:
    """Returns `settings` with `options` put in, checked as a recipe is.

    Raises:
        UserError: an unknown option, or one of the wrong type or range.
    """
    # A NumPy number, or a tensor's, is as good as Python's own, and pydantic takes it for none.
    plain = {name: value.item() if getattr(value, "ndim", None) == 0 else value for name, value in options.items()}
    values = {**settings.model_dump(), **plain}
    try:
        return type(settings).model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(problems_of(error, type(settings), path, values=values))) from error


def dump(recipe: Recipe) -> str:
    """Returns the recipe as YAML that `load` reads back to an equal one, every default written out."""
    return HEAD + recipe_yaml.write(recipe.resolved())


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with a later layer laid over it; neither is changed.

    Mappings merge key by key, with two exceptions. One that names another `kind` than the base's (or another
    `name` in `data.hub`) replaces it, for the old one's options would be wrong. And a source of sentences in
    `data` puts out the other sources, and where it is a new one, what described the old.
    """
    result = _merge(base, layer, ())
    before, said, data = base.get("data"), layer.get("data"), result.get("data")
    if isinstance(before, Mapping) and isinstance(said, Mapping) and isinstance(data, dict):
        given = [name for name in SOURCES if said.get(name) is not None]
        others = [name for name in SOURCES if name not in said and before.get(name) is not None]
        renewed = given == ["hub"] and _is_another(before.get("hub"), said["hub"], ("data", "hub"))
        gone = [*others, *OF_THE_SOURCE] if given and (others or renewed) else []
        for name in gone:
            if name not in said:
                data.pop(name, None)
    return result


class _Layer(NamedTuple):
    """What one file or the command line says."""

    origin: str
    values: dict[str, Any]


def _read_layers(path: Path, chain: tuple[Path, ...], layers: list[_Layer]) -> None:
    """Appends the layers of a file, those it extends first; a file that is there already stays where it is."""
    source = str(path)
    if any(os.path.realpath(layer.origin) == os.path.realpath(path) for layer in layers):
        return
    names = " -> ".join(str(file) for file in (*chain, path))
    if any(os.path.realpath(path) == os.path.realpath(file) for file in chain):
        raise RecipeError([f"extends: goes in a circle: {names}"], str(chain[-1]))
    if len(chain) == LONGEST_CHAIN:
        raise RecipeError([f"extends: goes through more than {LONGEST_CHAIN} files: {names}"], str(chain[0]))
    try:
        values = recipe_yaml.read(path)
    except recipe_yaml.YamlError as error:
        if chain and not os.path.exists(path):
            raise RecipeError([f"extends: {path} does not exist: {names}"], str(chain[-1])) from error
        raise RecipeError([f"{error}{f' (extended: {names})' if chain else ''}"], source) from error
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(name, str) and name for name in parents):
        raise RecipeError([f"extends: got {parents!r}; it names a recipe file, or a list of them"], source)
    if parents and (path.parent / "tokenizer").is_dir() and (path.parent / "metrics.jsonl").exists():
        # It may be a stranger's, and would have any file read that its reader can.
        raise RecipeError([f"extends: got {parents!r}; a run folder's recipe is whole and extends nothing"], source)
    for name in parents:
        _read_layers(path.parent / os.path.expanduser(name), (*chain, path), layers)
    _check_sources(values, source)
    layers.append(_Layer(source, _with_absolute_paths(values, path.parent)))


def _override_layer(overrides: Iterable[str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    found = []
    for override in overrides:
        try:
            keys, value = _override(override)
            for key in reversed(keys):
                value = {key: value}
            _join(layer, value, "")
        except UserError as error:
            found.append(str(error))
    if found:
        raise RecipeError(found, COMMAND_LINE)
    _check_sources(layer, COMMAND_LINE)
    return _with_absolute_paths(layer, Path.cwd())


def _override(override: str) -> tuple[list[str], Any]:
    """The keys and the value of one "key.path=value"."""
    path, equals, text = override.partition("=")
    keys, text = path.strip().split("."), text.strip()
    if not equals or not all(_KEY.fullmatch(key) for key in keys) or len(keys) > recipe_yaml.DEEPEST:
        raise UserError(f"{override!r}: an override is key.path=value, as training.max_steps=1000")
    if keys[0] == "extends":
        raise UserError("extends: stands in a recipe file; on the command line give the file itself")
    if not text:
        return keys, ""
    hint = "quote text that YAML reads otherwise, as in 'data.files={train: \"a: b.txt\"}' or 'name=\"a #1\"'"
    try:
        value = recipe_yaml.parse(text)
    except recipe_yaml.YamlError as error:
        raise UserError(f"{path.strip()}: {text!r} is no YAML value: {error}; {hint}") from error
    unspaced = [key for key, item in value.items() if item is None and ":" in key] if isinstance(value, dict) else []
    if unspaced:
        raise UserError(f"{path.strip()}: {unspaced[0]!r} needs a space after the colon, as in {{train: a.txt}}")
    plain = text[0] not in "\"'[{|>"
    if plain and ((value is None and text not in _NULLS) or (isinstance(value, str) and value != text)):
        raise UserError(f"{path.strip()}: {text!r} reads as {'null' if value is None else repr(value)} in YAML; {hint}")
    return keys, value


def _join(layer: dict[str, Any], more: dict[str, Any], path: str) -> None:
    """Puts one override beside the others; none may say again what another has said."""
    for key, value in more.items():
        where = f"{path}{key}"
        if key not in layer:
            layer[key] = value
        elif isinstance(layer[key], dict) and isinstance(value, dict):
            _join(layer[key], value, f"{where}.")
        else:
            raise UserError(f"{where}: is given twice, as {layer[key]!r} and as {value!r}; keep one of them")


def _check_sources(values: Mapping[str, Any], source: str) -> None:
    data = values.get("data")
    given = [name for name in SOURCES if isinstance(data, Mapping) and data.get(name) is not None]
    if len(given) > 1:
        allowed = f"exactly one source is needed: {', '.join(SOURCES)}"
        raise RecipeError([f"data: got {' and '.join(given)}; {allowed}"], source)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Returns a recipe whose paths, relative to the current folder where it was made in Python, are absolute."""
    return Recipe.model_validate(_with_absolute_paths(recipe.resolved(), Path.cwd()))


def _with_absolute_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths in a layer absolute: a recipe's own are relative to its file."""

    def absolute(path: Any) -> Any:
        if isinstance(path, list):
            return [absolute(item) for item in path]
        if not isinstance(path, str) or not path:
            return path
        whole = os.path.join(os.path.abspath(folder), os.path.expanduser(path))
        head, name = os.path.split(whole.rstrip(os.sep) or os.sep)
        # A link keeps its own name: a cache's files have no endings, and the ending tells the format.
        return os.path.realpath(whole) if name in ("", ".", "..") else os.path.join(os.path.realpath(head), name)

    data, tokenizer, training = values.get("data"), values.get("tokenizer"), values.get("training")
    start = training.get("start_from") if isinstance(training, dict) else None
    if isinstance(start, dict) and "run" in start:
        start["run"] = absolute(start["run"])
    if isinstance(data, dict):
        if isinstance(data.get("files"), dict):
            data["files"] = {part: absolute(path) for part, path in data["files"].items()}
        if "folder" in data:
            data["folder"] = absolute(data["folder"])
    if isinstance(tokenizer, dict) and "path" in tokenizer:
        tokenizer["path"] = absolute(tokenizer["path"])
    return values


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, value in layer.items():
        before, here = result.get(key), (*path, key)
        mappings = isinstance(before, Mapping) and isinstance(value, Mapping)
        if mappings and not _is_another(before, value, here):
            result[key] = _merge(result[key], value, here)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _is_another(before: Any, said: Any, path: tuple[str, ...]) -> bool:
    """Whether a mapping names another thing than the one before it, whose options are then not its own."""
    key = "name" if path == ("data", "hub") else "kind"
    if not isinstance(before, Mapping) or not isinstance(said, Mapping) or key not in said:
        return False
    was = before.get(key) or (_default_kind(path) if key == "kind" else None)
    return was is not None and said[key] != was


@functools.cache
def _default_kind(path: tuple[str, ...]) -> str | None:
    """The kind of the section at a key path where none is named."""
    fields = Recipe.model_fields
    for key in path[:-1]:
        fields = getattr(fields[key].annotation, "model_fields", {}) if key in fields else {}
    if path[-1] not in fields:
        return None
    try:
        section = pydantic.TypeAdapter(fields[path[-1]].rebuild_annotation()).validate_python({})
    except pydantic.ValidationError:
        return None
    return getattr(section, "kind", None)


def _key(problem: str) -> str:
    return problem.partition(": ")[0]


def _with_origin(problem: str, layers: Sequence[_Layer], source: str) -> str:
    """Adds to a message where its key was set, if that is not the recipe file itself."""
    keys = _key(problem).split(".")
    for path in (keys, keys[:-1]):
        said = [(layer.origin, value) for layer in layers for value in _at(layer.values, path)]
        if said:
            origin, value = said[-1]
            # No one layer is to blame for a mapping that several have written.
            if origin == source or (isinstance(value, Mapping) and len(said) > 1):
                return problem
            return f"{problem} (set {'on the command line' if origin == COMMAND_LINE else f'in {origin}'})"
    return problem


def _at(values: Any, path: Sequence[str]) -> list[Any]:
    """The value at a key path, or nothing; an item of a list is its list."""
    for key in path:
        if isinstance(values, list):
            break
        if not isinstance(values, Mapping) or key not in values:
            return []
        values = values[key]
    return [values]
