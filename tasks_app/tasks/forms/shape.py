"""The shape of a JSON parameter, for people: an example, and a line for each of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _
from pydantic_core import PydanticSerializationError, to_jsonable_python

from tasks_app.tasks.forms.schema import Schema, reduced
from tasks_app.tasks.secret_types import is_secret_schema

#: The number of levels of nested models to follow, and of fields to list.
DEEP, FIELDS = 4, 40
#: Example texts of formats.
TEXTS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T14:30:00Z",
    "time": "14:30:00",
    "duration": "PT1H30M",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "decimal": "9.99",
    "password": "…",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One field within a JSON value."""

    path: str
    kind: str
    required: bool
    about: str


@dataclass(frozen=True, slots=True)
class Shape:
    example: str
    members: list[Member] = field(default_factory=list)


def shape_of(schema: Schema, whole: Schema) -> Shape:
    """Return the shape of a value of this schema."""
    members: list[Member] = []
    for member in _members(schema, whole, "", 0):
        if len(members) == FIELDS:
            break
        members.append(member)
    try:
        plain = to_jsonable_python(_example(schema, whole, 0))
    except PydanticSerializationError:
        plain = {}
    return Shape(json.dumps(plain, indent=2, ensure_ascii=False), members)


def _example(schema: Schema, whole: Schema, depth: int) -> Any:
    if schema.get("examples"):
        return schema["examples"][0]
    found, nullable = reduced(schema, whole)
    if nullable and depth > 1 and found.get("type") == "object":
        return None  # A model may contain itself.
    if is_secret_schema(found):
        return TEXTS["password"]
    for keyword in ("examples", "choices"):
        if found.get(keyword):
            return found[keyword][0]
    if "const" in found:
        return found["const"]
    if found.get("default") not in (None, [], {}):
        return found["default"]
    among = found.get("anyOf") or found.get("oneOf") or []
    others = [one for one in among if one != {"type": "null"}]
    if others:
        return _example(others[0], whole, depth)
    match found.get("type"):
        case "object" | "array" if depth == DEEP:
            return {} if found["type"] == "object" else []
        case "object" if "properties" in found:
            return {
                name: _example(one, whole, depth + 1) for name, one in found["properties"].items()
            }
        case "object":
            rest = found.get("additionalProperties")
            return {"key": _example(rest, whole, depth + 1)} if isinstance(rest, dict) else {}
        case "array":
            first = found.get("prefixItems") or [found.get("items", {})]
            return [_example(one, whole, depth + 1) for one in first]
        case "integer":
            return found.get("minimum", 1)
        case "number":
            return found.get("minimum", 1.5)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return TEXTS.get(str(found.get("format", "")), "text")


def _members(schema: Schema, whole: Schema, path: str, depth: int) -> Iterator[Member]:
    """Yield the fields of a model, and those of models in it."""
    found, _nullable = reduced(schema, whole)
    if depth == DEEP:
        return
    if isinstance(items := found.get("items"), dict):
        yield from _members(items, whole, f"{path}[]", depth)
    for name, one in found.get("properties", {}).items():
        inner, nullable = reduced(one, whole)
        place = f"{path}.{name}" if path else name
        yield Member(
            place,
            _kind(inner, whole, nullable=nullable),
            name in found.get("required", ()),
            str(one.get("description") or ""),
        )
        yield from _members(one, whole, place, depth + 1)


def _kind(schema: Schema, whole: Schema, *, nullable: bool = False) -> str:
    """Return the kind of a value, in words."""
    name = _named(schema, whole)
    return _("{kind} or null").format(kind=name) if nullable else name


def _named(schema: Schema, whole: Schema) -> str:
    if "choices" in schema:
        return ", ".join(str(getattr(one, "value", one)) for one in schema["choices"])
    others = schema.get("anyOf") or schema.get("oneOf")
    if others:
        kinds = [_kind(reduced(one, whole)[0], whole) for one in others]
        return _(" or ").join(dict.fromkeys(kinds))
    match schema.get("type"), schema.get("format"):
        case "string", "date":
            return _("date")
        case "string", "date-time":
            return _("date and time")
        case "string", "decimal":
            return _("decimal number")
        case "string", other if other:
            return str(other)
        case "string", _other:
            return _("text")
        case "integer", _other:
            return _("whole number")
        case "number", _other:
            return _("number")
        case "boolean", _other:
            return _("true or false")
        case "array", _other:
            items = schema.get("items")
            if not isinstance(items, dict):
                return _("list")
            return _("list of: {kind}").format(kind=_kind(reduced(items, whole)[0], whole))
        case "object", _other:
            return _("object")
        case _other:
            return _("any JSON")
