"""The YAML of recipes, both ways: plain scalars as YAML 1.2 reads them, and nothing that could surprise."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from textvae.errors import UserError

LARGEST_BYTES = 2**20
DEEPEST = 20
_MOST_DIGITS = 30
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class YamlError(UserError):
    """Text that is not the YAML a recipe may hold; the message opens with line and column where they are known."""


def read(path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds.

    Raises:
        YamlError: a file that cannot be read, is no YAML, or holds something else than a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "; a recipe is a file, a run's own is its recipe.yaml" if isinstance(error, IsADirectoryError) else ""
        raise YamlError(f"cannot be read ({reason}){hint}") from error
    if len(data) > LARGEST_BYTES:
        raise YamlError(f"is larger than the {LARGEST_BYTES:,} bytes that a recipe may have")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YamlError(f"line {line}: is not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from error
    values = parse(text)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise YamlError(f"holds {str(values)[:40]!r}; a recipe is a mapping of keys, as `seed: 0`")
    return values


def parse(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        YamlError: text that is no YAML, or uses what recipes do not.
    """
    loader = None
    try:
        loader = _Loader(text)  # a SafeLoader, and stricter
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or error.context}") from error
    except (OverflowError, ValueError) as error:
        where = "" if loader is None else f"line {loader.line + 1}, column {loader.column + 1}: "
        raise YamlError(f"{where}an escape that is no character ({error})") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise YamlError(f"line {line}, column {column}: {_shown(text[error.position])} is not allowed") from error


def write(values: dict[str, Any]) -> str:
    """Returns YAML text that `parse` (and any YAML 1.1 reader) reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Loader(yaml.SafeLoader):
    """Numbers like 1e-3 are numbers, `no` and dates are text, a key stands once; no aliases, tags or deep nests."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _error(event, "anchors (&) and aliases (*) are not allowed in recipes; quote text that begins so")
        if getattr(event, "tag", None) is not None:
            raise _error(event, "tags (!) are not allowed in recipes; quote text that begins so")
        if isinstance(event, yaml.ScalarEvent) and (found := _CONTROL.search(event.value)):
            raise _error(event, f"{_shown(found.group())} is not allowed")
        if self._depth == DEEPEST:
            raise _error(event, f"is nested more than {DEEPEST} deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _error(key_node, "keys are text; quote one that YAML reads as a number, true, false or null")
            if key in result:
                raise _error(key_node, f"the key {key!r} is given twice")
            result[key] = self.construct_object(value_node, deep=deep)
        return result

    def construct_int(self, node: yaml.ScalarNode) -> int:
        # PyYAML reads 010 as octal; here a number is decimal.
        if len(node.value) > _MOST_DIGITS:
            raise _error(node, f"a number of more than {_MOST_DIGITS} digits")
        return int(node.value, 10)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        value = float(re.sub(r"\.(?=[in])", "", node.value.lower()))
        if not math.isfinite(value):
            raise _error(node, f"{node.value} is no finite number")
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or the loader above would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Only double quotes keep these line breaks; the library picks them for some texts and not for others.
        style = '"' if re.search("[\r\x85\u2028\u2029\ufeff]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _error(at: Any, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=at.start_mark)


def _shown(character: str) -> str:
    return f"the unprintable character U+{ord(character):04X}"


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_Loader.yaml_implicit_resolvers = {}
# What a class inherits is shared with its parents until it has its own.
_Dumper.yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)
