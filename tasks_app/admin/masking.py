"""Parameters and results with their secrets masked, as pages show them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from tasks_app.exceptions import InvalidTask, UnknownTask
from tasks_app.models import Task
from tasks_app.tasks.base import BaseTask, resolve
from tasks_app.tasks.declaration import buildable
from tasks_app.tasks.secret_types import is_secret_schema

MASK = "••••••••"


class _Schemas(GenerateJsonSchema):
    """JSON Schema that marks a type without a schema as secret, because its content is unknown."""

    def handle_invalid_for_json_schema(
        self, schema: core_schema.CoreSchema, error_info: str
    ) -> dict[str, Any]:
        return {"writeOnly": True}


#: A JSON schema, and the document in which its references are resolved.
_Schema = tuple[Mapping[str, Any], Mapping[str, Any]]
#: The schema of a value about which nothing is declared.
_ANYTHING: Mapping[str, Any] = {}


def shown_params(task: Task) -> tuple[Any, bool]:
    """Return a task's parameters with secrets masked, and whether secrets could be identified.

    If its class cannot be imported, or its model cannot be built, they cannot: every value is
    masked. A value whose type has no JSON schema is masked too.
    """
    try:
        with buildable("The parameters"):
            return masked(task.params, _schemas_of(resolve(task.name).params_model())), True
    except (UnknownTask, InvalidTask):
        return all_masked(task.params), False


def shown_result(task: Task) -> tuple[Any, bool]:
    """Return a task's result with secrets masked, and whether secrets could be identified.

    Values of Pydantic's secret types were masked when the result was stored. A field that only its
    declaration marks as secret was not.
    """
    try:
        with buildable("The result"):
            return masked(task.result, _result_schemas(resolve(task.name))), True
    except (UnknownTask, InvalidTask):
        return all_masked(task.result), False


def pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def masked(data: Any, schemas: list[_Schema]) -> Any:
    """Mask values that one of the schemas marks as secret, and values that none declares."""
    if data is None:
        return None
    alternatives = _alternatives(schemas)
    if any(is_secret_schema(schema) for schema, _document in alternatives):
        return MASK
    if isinstance(data, dict):
        return {key: _member(key, value, alternatives) for key, value in data.items()}
    if isinstance(data, list):
        return [masked(value, _items(place, alternatives)) for place, value in enumerate(data)]
    return data


def all_masked(data: Any) -> Any:
    """Keep the names of the outermost object, and mask every value."""
    if data is None:
        return None
    return dict.fromkeys(data, MASK) if isinstance(data, dict) else MASK


def _schemas_of(model: type[BaseModel]) -> list[_Schema]:
    # Both modes, because a field may have one name for reading and another for writing.
    modes: tuple[Any, Any] = ("validation", "serialization")
    schemas = [model.model_json_schema(mode=mode, schema_generator=_Schemas) for mode in modes]
    return [(schema, schema) for schema in schemas]


def _result_schemas(cls: type[BaseTask]) -> list[_Schema]:
    adapter: TypeAdapter[Any] = cls.result_type()
    schema = adapter.json_schema(mode="serialization", schema_generator=_Schemas)
    return [(schema, schema)]


def _alternatives(schemas: Iterable[_Schema]) -> list[_Schema]:
    """Return the schemas with those that they refer to or combine.

    Each is returned once. In a recursive union each schema leads to every other, so without this
    the work would double with each level of the data.
    """
    found: dict[int, _Schema] = {}
    waiting = list(schemas)
    while waiting:
        schema, document = waiting.pop()
        if id(schema) in found:
            continue
        found[id(schema)] = schema, document
        reference = schema.get("$ref")
        if isinstance(reference, str):
            waiting.append((_referred(reference, document), document))
        for keyword in ("anyOf", "oneOf", "allOf"):
            waiting += [(other, document) for other in schema.get(keyword, ())]
    return list(found.values())


def _referred(reference: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    target: Any = document
    for part in reference.removeprefix("#/").split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    return cast("Mapping[str, Any]", target)


def _member(key: str, value: Any, alternatives: list[_Schema]) -> Any:
    matching: list[_Schema] = []
    declares = False
    for schema, document in alternatives:
        properties, rest = schema.get("properties"), schema.get("additionalProperties")
        declares = declares or properties is not None
        if properties and key in properties:
            matching.append((properties[key], document))
        elif isinstance(rest, dict):
            matching.append((rest, document))
        elif rest is True:
            matching.append((_ANYTHING, document))
        matching += [(other, document) for other in schema.get("patternProperties", {}).values()]
    if declares and not matching:
        return MASK  # The class no longer declares it, and may have declared it as a secret.
    return masked(value, matching)


def _items(index: int, alternatives: list[_Schema]) -> list[_Schema]:
    matching: list[_Schema] = []
    for schema, document in alternatives:
        first = schema.get("prefixItems", [])
        if index < len(first):
            matching.append((first[index], document))
        elif isinstance(schema.get("items"), dict):
            matching.append((schema["items"], document))
    return matching
