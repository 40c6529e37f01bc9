"""The JSON schema of recipe files, for editors; options are read from the constructors' signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textvae.recipe import Recipe
from textvae.registry import Registry


def json_schema(families: Mapping[str, Registry]) -> dict[str, Any]:
    """Returns a JSON schema (draft 2020-12) of recipe files, for editors.

    Args:
        families: key path of a section -> its registry, with `*` for a term's name.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "textvae recipe"
    parents = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema["properties"]["extends"] = {**parents, "description": "recipe files this one is laid over"}
    definitions = schema["$defs"]
    # A file may leave to the one it extends what a whole recipe needs.
    for part in (schema, *definitions.values()):
        part.pop("required", None)
    weight = {"anyOf": [{"type": "number", "minimum": 0}, _section_schema(families["objective.*.weight"])]}
    definitions["Objective"] = {
        "type": "object",
        "properties": {"reconstruction": _section_schema(families["objective.reconstruction"])},
        "additionalProperties": {"anyOf": [_section_schema(families["objective.*"], weight=weight), {"type": "null"}]},
    }
    for path, registry in families.items():
        if path.startswith("objective."):
            continue
        parent, _, name = path.rpartition(".")
        owner = definitions[parent.capitalize()] if parent else schema
        section = _section_schema(registry)
        if owner["properties"][name].get("type") == "array":
            owner["properties"][name]["items"] = section
            continue
        optional = {"type": "null"} in owner["properties"][name].get("anyOf", [])
        owner["properties"][name] = {"anyOf": [*section["anyOf"], {"type": "null"}]} if optional else section
    for name in ("Section", "Term"):
        definitions.pop(name, None)
    return schema


def _section_schema(registry: Registry, **shared: Any) -> dict[str, Any]:
    variants: list[dict[str, Any]] = []
    every: dict[str, list[Any]] = {}
    for kind in registry:
        options = {**registry.options(kind).model_json_schema().get("properties", {}), **shared}
        for name, option in options.items():
            every.setdefault(name, []).append(option)
        variants.append(
            {
                "title": f"{registry.family} {kind}",
                "type": "object",
                "properties": {"kind": {"const": kind}, **options},
                "required": ["kind"],
                "additionalProperties": False,
            }
        )
    # Without a kind it is the default one's, or that of the file this one extends.
    variants.append(
        {
            "title": registry.family,
            "type": "object",
            "properties": {name: {"anyOf": options} for name, options in every.items()},
            "additionalProperties": False,
        }
    )
    # A user's own class, by dotted path: its options are its own.
    own = {"type": "object", "properties": {"kind": {"type": "string", "pattern": r"\."}}, "required": ["kind"]}
    return {"anyOf": [*variants, own]}
