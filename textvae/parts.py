"""What a recipe can name: every kind of every family, with its options, read from the code itself."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import annotated_types
import pydantic
from pydantic.fields import FieldInfo

from textvae.errors import MissingExtraError, UserError, suggest
from textvae.registry import Registry
from textvae.schedules import Duration

WIDTH = 110  # columns of the table
DURATION = typing.get_args(Duration)[1]  # the check that makes text or a number a duration
TYPES: Mapping[Any, str] = {float: "number", int: "integer", str: "text", bool: "boolean", type(None): "null"}


def parts(families: Mapping[str, Registry], only: str | None = None) -> list[dict[str, Any]]:
    """Returns what can stand in a recipe, one row a kind, in the order of the registries.

    Args:
        families: key path of a section -> its registry, with `*` for a term's name (`textvae.build.FAMILIES`).
        only: a key path or a family's name; the rows of all families where absent.

    Returns:
        Rows of plain values: family, kind, key (the section's key path), default (true for the kind that a
        section without `kind` is), options (each: name, type, default, bounds, required, and its meaning from
        the docstring, "" if that is silent), summary (the first sentence of the docstring), paper (arXiv
        numbers, "" if it names none), needs ("" where it can be used, else what must be installed; its options
        are then unknown).

    Raises:
        UserError: `only` is no family.
    """
    chosen = {key: registry for key, registry in families.items() if only in (None, key, registry.family)}
    if not chosen:
        known = [*families, *(registry.family for registry in families.values())]
        raise UserError(f"got {only!r}, which is no family of parts{suggest(only, set(known))}")
    return [_row(key, registry, kind) for key, registry in chosen.items() for kind in registry]


def table(rows: Iterable[Mapping[str, Any]], *, meanings: bool = False) -> str:
    """Returns rows of `parts` as text for a terminal, at most 110 columns wide.

    Args:
        rows: from `parts`; rows of one family stand together.
        meanings: whether a line says what each option means.
    """
    lines: list[str] = []
    heading = None
    durations = False
    for row in rows:
        durations |= any("duration" in option["type"].split(" | ") for option in row["options"])
        if row["key"] != heading:
            heading = row["key"]
            lines += ["", heading if heading == row["family"] else f"{heading} ({row['family']})"]
        lines += ["", *_described(row, meanings)]
    if durations:
        lines += ["", 'A duration is a number of steps, or text as "10 epochs".']
    return "\n".join(lines[1:]) + "\n" if lines else ""


def _row(key: str, registry: Registry, kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "family": registry.family,
        "kind": kind,
        "key": key,
        "default": kind == registry.default,
        "options": [],
        "summary": "",
        "paper": "",
        "needs": "",
    }
    try:
        constructor = registry.resolve(kind)
        model = registry.options(kind)
    except ImportError as error:
        row["needs"] = _needed(error)
        return row
    documentation = _documentation(constructor)
    meanings = _meanings(constructor)
    row["options"] = [
        {**_option(name, field), "meaning": meanings.get(name, "")} for name, field in model.model_fields.items()
    ]
    row["summary"] = _first_sentence(documentation)
    row["paper"] = ", ".join(dict.fromkeys(re.findall(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})", documentation)))
    return row


def _needed(error: ImportError) -> str:
    """What to install where a kind cannot be imported."""
    if isinstance(error, MissingExtraError):
        return str(error)
    library = (error.name or "").partition(".")[0]
    if library == "textvae":
        raise error
    try:
        required = metadata.requires("textvae") or []
    except metadata.PackageNotFoundError:
        required = []
    for line in required:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if extra and library and re.sub(r"[-_.]+", "_", name).lower() == library.lower():
            return str(MissingExtraError(library, extra[1], "for it"))
    return f"{library or 'a library'} is needed for it: {error}"


def _documentation(constructor: Callable[..., Any]) -> str:
    # Not inspect.getdoc, which gives a class without one its parent's.
    text = inspect.cleandoc(constructor.__doc__ or "")
    if inspect.isclass(constructor) or not text.startswith("Returns "):
        return text
    # A function says what it returns; here that is what the kind is.
    text = text.removeprefix("Returns ")
    return text[:1].upper() + text[1:]


def _first_sentence(documentation: str) -> str:
    paragraph = " ".join(documentation.partition("\n\n")[0].split())
    # A new sentence opens with a capital: "e.g. 3" and "0.1 to 1" go on.
    found = re.match(r".+?[.!?](?=\s+[A-Z<]|$)", paragraph)
    return found[0] if found else paragraph


def _meanings(constructor: Callable[..., Any]) -> dict[str, str]:
    """What the docstring's Args say of each name; where a class is silent, its parents'."""
    found: dict[str, str] = {}
    for owner in inspect.getmro(constructor) if inspect.isclass(constructor) else (constructor,):
        block = re.search(r"^Args:\n((?:    .*\n?|\n)+)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
        for name, text in re.findall(
            r"^    (\w+)[^:\n]*:((?:.*\n?)(?:     .*\n?)*)", block[1] if block else "", re.MULTILINE
        ):
            found.setdefault(name, " ".join(text.split()).removesuffix("."))
    return found


def _option(name: str, field: FieldInfo) -> dict[str, Any]:
    kind, bounds = _type(field.annotation, field.metadata)
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    try:
        default = json.loads(json.dumps(default))
    except (TypeError, ValueError):
        default = repr(default)
    return {"name": name, "type": kind, "default": default, "bounds": bounds, "required": required}


def _type(annotation: Any, constraints: Iterable[Any] = ()) -> tuple[str, str]:
    """An annotation in a recipe's words: its type, and its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [m for entry in arguments[1:] for m in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
        return _type(arguments[0], [*inner, *constraints])
    constraints = list(constraints)
    if DURATION in constraints:
        return "duration", ""
    own = ", ".join(filter(None, map(_bound, constraints)))
    own = re.sub(r"length >= (\d+), length <= \1\b", r"length \1", own)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments)), own
    if origin in (typing.Union, types.UnionType):
        members = [_type(argument) for argument in arguments]
        bounds = [own, *(bound for _, bound in members)]
        return " | ".join(dict.fromkeys(kind for kind, _ in members)), ", ".join(filter(None, dict.fromkeys(bounds)))
    if origin in (list, tuple) and arguments:
        kinds = [_type(argument) for argument in arguments if argument is not Ellipsis]
        each = " or ".join(dict.fromkeys(bound for _, bound in kinds if bound))
        length = f"length {len(kinds)}" if origin is tuple and Ellipsis not in arguments else ""
        names = " or ".join(dict.fromkeys(kind for kind, _ in kinds))
        return f"list of {names}", ", ".join(filter(None, [own, length, each and f"each {each}"]))
    if origin is dict:
        return "mapping", own
    if annotation in TYPES:
        return TYPES[annotation], own
    if inspect.isclass(annotation) and issubclass(annotation, pydantic.BaseModel):
        return "mapping", own
    return getattr(annotation, "__name__", str(annotation)).removeprefix("typing."), own


def _bound(constraint: Any) -> str:
    """A constraint of pydantic's in signs; "" for one that signs do not say (a function)."""
    for kind, attribute, sign in (
        (annotated_types.Gt, "gt", ">"),
        (annotated_types.Ge, "ge", ">="),
        (annotated_types.Lt, "lt", "<"),
        (annotated_types.Le, "le", "<="),
        (annotated_types.MinLen, "min_length", "length >="),
        (annotated_types.MaxLen, "max_length", "length <="),
        (annotated_types.MultipleOf, "multiple_of", "a multiple of"),
    ):
        if isinstance(constraint, kind):
            return f"{sign} {getattr(constraint, attribute):g}"
    pattern = getattr(constraint, "pattern", None)
    return f"like {pattern}" if pattern else ""


def _written(default: Any) -> str:
    """A default as a recipe writes it."""
    if isinstance(default, list):
        return f"[{', '.join(map(_written, default))}]"
    if isinstance(default, float) and float(f"{default:g}") == default:
        return f"{default:g}"
    return default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)


def _described(row: Mapping[str, Any], meanings: bool) -> list[str]:
    title = f"  {row['kind']}" + " (default)" * bool(row["default"])
    indent = " " * 6
    lines = [title]
    for text in (row["summary"], row["needs"]):
        lines += textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    cells = [
        (
            option["name"],
            "required" if option["required"] else _written(option["default"]),
            option["type"] + (f", {option['bounds']}" if option["bounds"] else ""),
        )
        for option in row["options"]
    ]
    name_width = max((len(name) for name, _, _ in cells), default=0)
    # A long default (a list) breaks the column of its own row, not that of all.
    default_width = max((len(default) for _, default, _ in cells if len(default) <= 16), default=0)
    for option, (name, default, kind) in zip(row["options"], cells):
        text = f"{name:<{name_width}}  {default:<{default_width}}  {kind}"
        hanging = indent + " " * (name_width + default_width + 4)
        lines += textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=hanging)
        if meanings:
            lines += textwrap.wrap(option["meaning"], WIDTH, initial_indent=hanging, subsequent_indent=hanging)
    if row["paper"] and not all(number in row["summary"] for number in row["paper"].split(", ")):
        lines.append(f"{indent}arXiv {row['paper']}")
    return lines
