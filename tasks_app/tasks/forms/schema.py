"""The JSON schema of a task's parameters, as a form needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from tasks_app.tasks.secret_types import SECRET_TYPES

Schema = dict[str, Any]


class FormSchema(GenerateJsonSchema):
    """JSON Schema with the choices themselves, and an empty schema where it would raise an error.

    A choice is the Python value, not its JSON. A type that JSON Schema cannot express is empty.
    """

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    # These methods take a core schema. Pydantic has a separate type for each kind.
    def literal_schema(self, schema: Any) -> Schema:
        return {"choices": list(schema["expected"])}

    def enum_schema(self, schema: Any) -> Schema:
        return {"choices": list(schema["members"])}

    def decimal_schema(self, schema: Any) -> Schema:
        return {"type": "string", "format": "decimal", **self._bounds(schema)}

    def datetime_schema(self, schema: Any) -> Schema:
        return super().datetime_schema(schema) | {"zone": schema.get("tz_constraint")}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}

    def _bounds(self, schema: Any) -> Schema:
        bounds = {"ge": "minimum", "le": "maximum"}
        return {name: schema[given] for given, name in bounds.items() if given in schema}


def reduced(schema: Schema, whole: Schema) -> tuple[Schema, bool]:
    """Return a schema with references resolved and without None, and whether None was allowed."""
    while "$ref" in schema:
        # The title and description of a model or an enumeration do not describe this use of it.
        target = {
            key: value for key, value in _target(schema, whole).items() if key not in _OF_ITSELF
        }
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    if "choices" in schema:
        some = [choice for choice in schema["choices"] if choice is not None]
        return schema | {"choices": some}, len(some) < len(schema["choices"])
    others = [one for one in schema.get("anyOf", []) if one != _NONE]
    if len(others) == 1:
        return reduced(others[0], whole)[0], True
    return schema, _NONE in schema.get("anyOf", [])


def walk(schema: Any, whole: Schema, seen: frozenset[str] = frozenset()) -> Iterator[Schema]:
    """Yield a schema and all schemas in it."""
    if isinstance(schema, list):
        for part in schema:
            yield from walk(part, whole, seen)
    if not isinstance(schema, dict):
        return
    yield schema
    if isinstance(ref := schema.get("$ref"), str) and ref not in seen:
        seen |= {ref}
        yield from walk(_target(schema, whole), whole, seen)
    for part in schema.values():
        yield from walk(part, whole, seen)


_NONE = {"type": "null"}
_OF_ITSELF = {"title", "description"}


def _target(schema: Schema, whole: Schema) -> Schema:
    found: Schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return found


def holds_secret(annotation: Any, seen: frozenset[Any] = frozenset()) -> bool:
    kind = get_origin(annotation) or annotation
    parts = list(get_args(annotation))
    if isinstance(kind, type):
        if issubclass(kind, SECRET_TYPES):
            return True
        if issubclass(kind, BaseModel) and kind not in seen:
            seen |= {kind}
            parts += [info.annotation for info in kind.model_fields.values()]
    return any(holds_secret(part, seen) for part in parts)
