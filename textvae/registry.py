"""From a recipe's section to an object: `kind` names the class, the other keys are its options.

One convention carries this: a class takes what the builder knows (sizes, step counts) as positional
arguments and what a recipe may say as keyword-only arguments. The options' names, types, bounds and
defaults are therefore written once, in the signature, and the checks, the help and the JSON schema
are read from it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from textvae.errors import UserError, suggest

LARGEST_REPORT = 200  # problems of one section


class UntrustedCodeError(UserError):
    """A dotted path to a user's class, found where running it was not allowed."""


class Registry:
    """The kinds of one family.

    Args:
        family: what messages call a member ("divergence").
        kinds: name -> class (or function), or "module:Class" where importing it now would be heavy or circular.
        default: the kind taken when a section names none.
        beside: keys that stand in a section with the kind's own options, and are another's business.
    """

    def __init__(
        self,
        family: str,
        kinds: Mapping[str, Callable[..., Any] | str],
        *,
        default: str | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        self.family, self.beside = family, tuple(beside)
        self.kinds = dict(kinds)
        self.default = default

    def __iter__(self) -> typing.Iterator[str]:
        return iter(self.kinds)

    def resolve(self, kind: str, *, trust_code: bool = True) -> Callable[..., Any]:
        """Returns the class behind a kind or a dotted path.

        Raises:
            UserError: an unknown kind, or a dotted path that does not lead to a class.
            UntrustedCodeError: a dotted path while `trust_code` is false.
        """
        if kind in self.kinds:
            entry: Any = self.kinds[kind]
            if isinstance(entry, str):
                module, _, name = entry.partition(":")
                entry = getattr(importlib.import_module(module), name)
            return typing.cast(Callable[..., Any], entry)
        if "." in kind:
            if not trust_code:
                raise UntrustedCodeError(
                    f"kind {kind!r} is code outside textvae; load it with trust_code=True "
                    "(--trust-code) if you trust whoever wrote it"
                )
            return _import_dotted(kind)
        raise UserError(f"got {kind!r}, which is no {self.family}{suggest(kind, self.kinds)}")

    def options(self, kind: str, *, trust_code: bool = True) -> type[pydantic.BaseModel]:
        """Returns the pydantic model of a kind's options, read from its constructor's signature."""
        return _options_model(self.resolve(kind, trust_code=trust_code))

    def problems(self, section: Mapping[str, Any], path: str, *, trust_code: bool = True) -> list[str]:
        """Returns what is wrong with a section, one message a problem, each opening with its key path."""
        kind = section.get("kind", self.default)
        if not isinstance(kind, str):
            return [f"{path}.kind: got {_shown(kind)}, a {self.family} needs a name{suggest(kind or '', self.kinds)}"]
        try:
            model = self.options(kind, trust_code=trust_code)
        except UserError as error:
            return [f"{path}.kind: {error}"]
        return option_problems(model, {k: v for k, v in section.items() if k != "kind"}, path, self.beside)

    def build(self, section: Mapping[str, Any], *args: Any, path: str = "", trust_code: bool = True) -> Any:
        """Returns the object a section describes; `args` are what the builder supplies.

        Raises:
            UserError: an unknown kind, an unknown option or one of the wrong type or range.
        """
        found = self.problems(section, path or self.family, trust_code=trust_code)
        if found:
            raise UserError("\n".join(found))
        kind = section.get("kind", self.default)
        constructor = self.resolve(typing.cast(str, kind), trust_code=trust_code)
        given = {k: v for k, v in section.items() if k != "kind"}
        values = _validated(_options_model(constructor), given)
        try:
            return constructor(*args, **{name: getattr(values, name) for name in given})
        except Exception as error:
            if kind in self.kinds or isinstance(error, UserError):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path or self.family}.kind: {kind} cannot be made ({reason})") from error


def takes_positional(constructor: Callable[..., Any]) -> bool:
    """Returns whether a class or function takes something of the builder besides its options."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(parameter.kind in kinds for parameter in inspect.signature(constructor).parameters.values())


def option_problems(
    model: type[pydantic.BaseModel], values: Mapping[str, Any], path: str, beside: Sequence[str] = ()
) -> list[str]:
    """Returns the messages for `values` held against `model`, each opening with its key path.

    `beside` are keys that may stand with them and are held against another model.
    """
    try:
        _validated(model, values)
    except pydantic.ValidationError as error:
        return problems_of(error, model, path, values=values, beside=beside)
    return []


def problems_of(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    path: str = "",
    *,
    values: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> list[str]:
    """Turns pydantic's report into messages "key.path: got X, allowed Y", one a key path.

    Args:
        error: pydantic's report.
        model: what was validated against.
        path: the key path of the whole, put before each message's own.
        values: what was validated; with it, a key path holds the keys that were written and nothing of pydantic's.
        beside: keys that may stand with the model's own.
    """
    # Where a type is a union, pydantic reports a problem for each of its members; they are gathered by key path.
    wrong_types: dict[str, tuple[str, list[str]]] = {}
    others: dict[str, list[str]] = {}
    order: dict[str, None] = {}
    # A recipe of nothing but mistakes is told the first of them, and in time.
    for item in error.errors(include_url=False)[:LARGEST_REPORT]:
        keys = [*([path] if path else []), *_written(item, values)]
        where = ".".join(keys)
        order.setdefault(where)
        if item["type"].endswith("_type"):
            allowed = wrong_types.setdefault(where, (_shown(item["input"]), []))[1]
            if (expected := _expected(item["msg"])) not in allowed:
                allowed.append(expected)
        elif (message := _message(item, where, model, beside)) not in others.setdefault(where, []):
            others[where].append(message)
    messages = []
    for where in order:
        messages += others.get(where, [])
        # A member of the union that got further than the type is the one that was meant.
        further = where in others or any(other.startswith(f"{where}.") for other in order)
        if where in wrong_types and not further:
            found, allowed = wrong_types[where]
            messages.append(f"{where}: got {found}; should be {' or '.join(allowed)}")
    more = error.error_count() - LARGEST_REPORT
    return [*messages, f"{path or 'the recipe'}: and {more:,} more such problems"] if more > 0 else messages


def _message(item: Any, where: str, model: type[pydantic.BaseModel], beside: Sequence[str]) -> str:
    location, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        known = [*_fields_at(model, location[:-1]), *(beside if len(location) == 1 else ())]
        return f"{where}: unknown key{suggest(location[-1], known)}"
    if kind == "missing":
        return f"{where}: is missing and has no default"
    if kind == "value_error":
        reason = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
        # A validator of several keys names the one to change: ".format: belongs to ..." goes on where it stands.
        return f"{where}{reason}".removeprefix(".") if reason.startswith(".") or not where else f"{where}: {reason}"
    names = re.findall(r"'([^']*)'", item["msg"]) if kind in ("literal_error", "enum") else []
    if location and location[-1] == "[key]":
        return f"{where}: unknown key" + (suggest(location[-2], names) if names else f"; {_lower(item['msg'])}")
    if names:
        near = item["input"] if isinstance(item["input"], str) else ""
        return f"{where}: got {_shown(item['input'])}{suggest(near, names)}"
    # "Input should be greater than 0", but "List should have at most 2 items".
    expected = _expected(item["msg"])
    return f"{where}: got {_shown(item['input'])}; {'should be ' * item['msg'].startswith('Input')}{expected}"


def _written(item: Any, values: Mapping[str, Any] | None) -> list[str]:
    """The keys of an error's location that stand in `values`, without pydantic's names of union members."""
    location = item["loc"]
    if values is None:
        return [str(key) for key in location]
    keys: list[str] = []
    here: Any = values
    for number, key in enumerate(location):
        absent = number == len(location) - 1 and item["type"] == "missing"
        held = key in here if isinstance(here, Mapping) else isinstance(here, list | tuple) and isinstance(key, int)
        if absent or held:
            keys.append(str(key))
            here = None if absent or (isinstance(here, list | tuple) and key >= len(here)) else here[key]
    return keys


def _expected(message: str) -> str:
    """What pydantic says should be there, in a recipe's words."""
    expected = _lower(message).removeprefix("input should be ")
    for theirs, ours in (
        (r"an? (valid )?(dictionary|object|mapping)( or (instance|object).*)?$", "a mapping"),
        (r"a valid (array|list|tuple)$", "a list"),
        (r"a valid boolean$", "true or false"),
        (r"a valid string$", "text"),
        (r"a valid (integer|number)$", r"a whole number" if "integer" in expected else "a number"),
        (r"none$", "null"),
    ):
        expected = re.sub(f"^{theirs}", ours, expected)
    return expected


def _shown(value: Any) -> str:
    """A value as a recipe writes it, cut where it is long."""
    words = {None: "null", True: "true", False: "false"}
    found = words[value] if value is None or isinstance(value, bool) else repr(value)
    return found if len(found) <= 80 else found[:77] + "..."


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The field names of the nested model that an error's location leads to."""
    for key in location:
        field = getattr(model, "model_fields", {}).get(key)
        if field is None:
            continue
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        nested = [c for c in candidates if inspect.isclass(c) and issubclass(c, pydantic.BaseModel)]
        if nested:
            model = nested[0]
    return list(getattr(model, "model_fields", {}))


def _validated(model: type[pydantic.BaseModel], values: Mapping[str, Any]) -> pydantic.BaseModel:
    # A recipe has no tuples; strict validation takes a list for one only where it reads JSON.
    try:
        text = json.dumps(values)
    except (TypeError, ValueError):
        return model.model_validate(dict(values))
    return model.model_validate_json(text)


def _options_model(constructor: Callable[..., Any]) -> type[pydantic.BaseModel]:
    target = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return pydantic.create_model(getattr(constructor, "__name__", "Options"), __config__=config, **fields)


def _import_dotted(path: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"got {path!r}; a class of your own is named by its dotted path, as mymodule.MyClass")
    module_name, _, name = path.rpartition(".")
    # A console script does not see the current folder, where a user's own module most often lies.
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(f"{path!r} cannot be imported: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise UserError(f"{path!r}: module {module_name!r} has no class {name!r}")
    return typing.cast(Callable[..., Any], found)
