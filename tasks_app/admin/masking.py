"""Parameters and results as people may read them: what is declared secret is not shown."""

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
    """Calls secret what has no JSON schema: nobody knows what is in it."""

    def handle_invalid_for_json_schema(
        self, schema: core_schema.CoreSchema, error_info: str
    ) -> dict[str, Any]:
        return {"writeOnly": True}


#: A JSON schema, and the document that it refers into.
_Schema = tuple[Mapping[str, Any], Mapping[str, Any]]
#: The schema of what nothing is said of.
_ANYTHING: Mapping[str, Any] = {}


def shown_params(task: Task) -> tuple[Any, bool]:
    """Its parameters, with what is secret masked, and whether it is known what is.

    If its class cannot be imported, or its model cannot be built, nobody knows: every value is
    masked. So is a value whose type has no JSON schema.
    """
    try:
        with buildable("The parameters"):
            return masked(task.params, _schemas_of(resolve(task.name).params_model())), True
    except (UnknownTask, InvalidTask):
        return blotted(task.params), False


def shown_result(task: Task) -> tuple[Any, bool]:
    """Its result, likewise. Secrets in it were masked when it was stored, but for fields that only
    their declaration says to be secret.
    """
    try:
        with buildable("The result"):
            return masked(task.result, _result_schemas(resolve(task.name))), True
    except (UnknownTask, InvalidTask):
        return blotted(task.result), False


def pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def masked(data: Any, schemas: list[_Schema]) -> Any:
    """Mask what one of the schemas calls secret, and what none of them knows.

    As Pydantic says it for SecretStr, SecretBytes and Secret: `format: password` and `writeOnly`.
    """
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


def blotted(data: Any) -> Any:
    """Keep the outermost names, and mask what they stand for."""
    if data is None:
        return None
    return dict.fromkeys(data, MASK) if isinstance(data, dict) else MASK


def _schemas_of(model: type[BaseModel]) -> list[_Schema]:
    # By the names that it is read by, and by those that it is written by.
    modes: tuple[Any, Any] = ("validation", "serialization")
    schemas = [model.model_json_schema(mode=mode, schema_generator=_Schemas) for mode in modes]
    return [(schema, schema) for schema in schemas]


def _result_schemas(cls: type[BaseTask]) -> list[_Schema]:
    adapter: TypeAdapter[Any] = cls.result_type()
    schema = adapter.json_schema(mode="serialization", schema_generator=_Schemas)
    return [(schema, schema)]


def _alternatives(schemas: Iterable[_Schema]) -> list[_Schema]:
    """Schemas with all that they refer to or are made of.

    Each but once: in a recursive union each leads to every other, so that their ways through the
    data would double with each level of it.
    """
    found: dict[int, _Schema] = {}
    waiting = list(schemas)
    while waiting:
        one, document = waiting.pop()
        if id(one) in found:
            continue
        found[id(one)] = one, document
        reference = one.get("$ref")
        if isinstance(reference, str):
            waiting.append((_referred(reference, document), document))
        for word in ("anyOf", "oneOf", "allOf"):
            waiting += [(other, document) for other in one.get(word, ())]
    return list(found.values())


def _referred(reference: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return cast("Mapping[str, Any]", found)


def _member(key: str, value: Any, alternatives: list[_Schema]) -> Any:
    found: list[_Schema] = []
    declares = False
    for one, document in alternatives:
        properties, rest = one.get("properties"), one.get("additionalProperties")
        declares = declares or properties is not None
        if properties and key in properties:
            found.append((properties[key], document))
        elif isinstance(rest, dict):
            found.append((rest, document))
        elif rest is True:
            found.append((_ANYTHING, document))
        found += [(other, document) for other in one.get("patternProperties", {}).values()]
    if declares and not found:
        return MASK  # Declared once, when it was started, and no more: perhaps as a secret.
    return masked(value, found)


def _items(place: int, alternatives: list[_Schema]) -> list[_Schema]:
    found: list[_Schema] = []
    for one, document in alternatives:
        first = one.get("prefixItems", [])
        if place < len(first):
            found.append((first[place], document))
        elif isinstance(one.get("items"), dict):
            found.append((one["items"], document))
    return found
