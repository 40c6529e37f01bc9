"""From a recipe's section to an object: `kind` names the class, the other keys are its options.

One convention carries this: a class takes what the builder knows (sizes, step counts) as positional
arguments and what a recipe may say as keyword-only arguments. The options' names, types, bounds and
defaults are therefore written once, in the signature, and the checks, the help and the JSON schema
are read from it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from textvae.errors import UserError, suggest


class UntrustedCodeError(UserError):
    """A dotted path to a user's class, found where running it was not allowed."""


class Registry:
    """The kinds of one family.

    Args:
        family: what messages call a member ("divergence").
        kinds: name -> class, or "module:Class" where importing it now would be heavy or circular.
        default: the kind taken when a section names none.
    """

    def __init__(self, family: str, kinds: Mapping[str, type | str], *, default: str | None = None) -> None:
        self.family = family
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
            entry = self.kinds[kind]
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
            return [f"{path}.kind: got {kind!r}, a {self.family} needs a name{suggest(kind or '', self.kinds)}"]
        try:
            model = self.options(kind, trust_code=trust_code)
        except UserError as error:
            return [f"{path}.kind: {error}"]
        return option_problems(model, {k: v for k, v in section.items() if k != "kind"}, path)

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
        values = _options_model(constructor)(**given)
        return constructor(*args, **{name: getattr(values, name) for name in given})


def option_problems(model: type[pydantic.BaseModel], values: Mapping[str, Any], path: str) -> list[str]:
    """Returns the messages for `values` held against `model`, each opening with its key path."""
    try:
        model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        return problems_of(error, model, path)
    return []


def problems_of(error: pydantic.ValidationError, model: type[pydantic.BaseModel], path: str = "") -> list[str]:
    """Turns pydantic's report into messages "key.path: got X, allowed Y"."""
    messages = []
    for item in error.errors(include_url=False):
        where = ".".join([path, *map(str, item["loc"])] if path else map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            message = f"{where}: unknown key{suggest(item['loc'][-1], known)}"
        elif item["type"] == "missing":
            message = f"{where}: is missing and has no default"
        elif item["type"] == "value_error":
            reason = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
            message = f"{where}: {reason}" if where else reason
        else:
            found = repr(item["input"])
            found = found if len(found) <= 80 else found[:77] + "..."
            message = f"{where}: got {found}; {item['msg'][0].lower()}{item['msg'][1:]}"
        if message not in messages:
            messages.append(message)
    return messages


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


def _options_model(constructor: Callable[..., Any]) -> type[pydantic.BaseModel]:
    target = constructor.__init__ if inspect.isclass(constructor) else constructor  # type: ignore[misc]
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return pydantic.create_model(getattr(constructor, "__name__", "Options"), __config__=config, **fields)


def _import_dotted(path: str) -> Callable[..., Any]:
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
