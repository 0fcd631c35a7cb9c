"""The JSON that a row keeps of a task's parameters and result, and what comes back from it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from tasks_app.schemas import DEPTH_MAX, JSON_MAX
from tasks_app.tasks.secret_types import SECRET_TYPES

Location = tuple[str | int, ...]
#: One fault, as Pydantic lists them.
Fault = dict[str, Any]

#: The value of a field or a key that was not read back.
MISSING = object()


def check_json(data: Any) -> str:
    """Return data as JSON text.

    Raises ValueError if no row can hold it as JSON (NaN, NUL, half a surrogate, too long), or if it
    is nested too deep to be read again.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    if (size := len(text.encode())) > JSON_MAX:
        raise ValueError(
            f"it has {size:,} bytes as JSON, and {JSON_MAX:,} is the most; "
            f"keep it in a file or a table of its own, and name that"
        )
    if _NUL.search(text):
        raise ValueError("text with a NUL character cannot be stored; remove it")
    if text.count("[") + text.count("{") > DEPTH_MAX and (depth := _depth(data)) > DEPTH_MAX:
        raise ValueError(
            f"it is nested {depth} levels deep, and {DEPTH_MAX} is the most; "
            f"make it flat, such as a list of rows that name their parents"
        )
    return text


def _depth(data: Any) -> int:
    """Return how deep lists and objects of JSON-able data are nested."""
    depth, level = 0, [data]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


# An escaped NUL that is not itself part of an escaped backslash.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def dump(model: BaseModel) -> Any:
    """Return a model as JSON-able data, in the form that the model reads again.

    It has the model's aliases, and no computed fields. Secrets are revealed.
    """
    # Pydantic warns of values that do not fit the annotation. Reading them again finds those.
    dumped = partial(model.model_dump, by_alias=True, round_trip=True, warnings=False)
    return _reveal(dumped(), dumped(mode="json"))


def _reveal(data: Any, jsonable: Any) -> Any:
    """Put secrets where their JSON form has asterisks, and NaN and infinity where it has null."""
    if isinstance(data, SECRET_TYPES):
        return to_jsonable_python(data.get_secret_value())
    if isinstance(data, float) and not math.isfinite(data):
        return data  # JSON's null would be another value; check_json refuses it.
    if isinstance(data, Mapping) and isinstance(jsonable, dict) and len(data) == len(jsonable):
        pairs = zip(data.values(), jsonable.items(), strict=True)
        return {key: _reveal(value, shown) for value, (key, shown) in pairs}
    if isinstance(data, (list, tuple, set, frozenset)) and isinstance(jsonable, list):
        return [_reveal(value, shown) for value, shown in zip(data, jsonable, strict=True)]
    return jsonable


def read_back(given: BaseModel, schema: type[BaseModel], text: str) -> list[Fault]:
    """Read a dumped model again as a worker will; return each field that would arrive changed."""
    try:
        read = schema.model_validate_json(text)
    except ValidationError as error:
        return [_unreadable(given, schema, fault) for fault in error.errors()]
    except Exception as error:  # noqa: BLE001 - a validator of the site's
        fault = {"loc": (), "msg": type(error).__name__}
        return [_unreadable(given, schema, fault)]
    faults: list[Fault] = []
    for at in _changes_of_model(given, read, ()):
        name = str(at[0])
        field = type(given).model_fields.get(name)
        loc = (given_as(name, field) if field else name, *at[1:])
        faults.append({"loc": loc, "msg": f"{_ALTERED}; {_remedy(name, field)}"})
    return faults


def given_as(name: str, field: FieldInfo) -> str:
    """Return the name by which a model takes a field."""
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return next((choice for choice in choices if isinstance(choice, str)), name)


_ALTERED = (
    "would not reach the task as it was given: the JSON that is stored reads as another value"
)
_REFUSED = "would not reach the task: the JSON that is stored is refused when it is read"


def _unreadable(given: BaseModel, schema: type[BaseModel], fault: Mapping[str, Any]) -> Fault:
    remedy = _remedy("", None)
    for name, field in schema.model_fields.items():
        if fault["loc"][:1] in ((name,), (given_as(name, field),)):
            is_none = getattr(given, name, MISSING) is None
            remedy = "allow None in its annotation" if is_none else _remedy(name, field)
    return {"loc": fault["loc"], "msg": f"{_REFUSED} ({fault['msg']}); {remedy}"}


def _remedy(name: str, field: FieldInfo | None) -> str:
    if field is not None and field.exclude:
        return "remove exclude=True from the field"
    if field is not None and field.validation_alias != field.serialization_alias:
        return f"set serialization_alias={given_as(name, field)!r}, by which the field is read"
    return (
        "annotate the type of the value, of its items and of its keys; a serializer of your own "
        "must write what is read as the same value, and a class of your own needs __eq__"
    )


def _changes(
    given: Any, read: Any, at: Location, *, is_default: bool = False
) -> Iterator[Location]:
    """Yield where a value that was read back is not the one that was given."""
    if is_default and type(given) is not type(read):
        return  # Pydantic validates no defaults, but what it read has the right type.
    if isinstance(given, BaseModel):
        # A subclass may have more fields than the class that is read.
        yield from _changes_of_model(given, read, at) if type(given) is type(read) else [at]
    elif dataclasses.is_dataclass(given) and not isinstance(given, type):
        if type(given) is not type(read):
            yield at
            return
        for part in dataclasses.fields(given):
            value = getattr(given, part.name)
            other, is_default = getattr(read, part.name), value is part.default
            yield from _changes(value, other, (*at, part.name), is_default=is_default)
    elif isinstance(given, Mapping):
        if not isinstance(read, Mapping) or given.keys() != read.keys():
            yield at
            return
        for key, value in given.items():
            yield from _changes(value, read[key], (*at, str(key)))
    elif isinstance(given, (list, tuple, deque)):
        if not isinstance(given, type(read)) or len(given) != len(read):
            yield at
            return
        for place, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from _changes(value, other, (*at, place))
    elif not _same(given, read):
        yield at


def _changes_of_model(given: BaseModel, read: BaseModel, at: Location) -> Iterator[Location]:
    """Compare fields and extras. Private attributes are no part of a model's data."""
    for name in type(given).model_fields:
        value, other = getattr(given, name, MISSING), getattr(read, name, MISSING)
        is_default = name not in given.model_fields_set
        yield from _changes(value, other, (*at, name), is_default=is_default)
    yield from _changes(given.model_extra or {}, read.model_extra or {}, at)


def _same(given: Any, read: Any) -> bool:
    """Whether a value equals another, and is of its type or a subclass, such as TextChoices."""
    if isinstance(given, int) and isinstance(read, (float, Decimal)):
        return bool(given == read)
    if not isinstance(given, type(read)):
        return False
    if isinstance(given, datetime.datetime):
        # In two zones, times that a change of clocks repeats are never equal by `==`.
        same_wall = given.replace(tzinfo=None) == read.replace(tzinfo=None)
        return bool(same_wall) and given.utcoffset() == read.utcoffset()
    if isinstance(given, datetime.time) and (given.tzinfo is None) is not (read.tzinfo is None):
        return False
    try:
        if given == read or (given != given and read != read):
            return True
    except Exception:  # noqa: BLE001 - arrays, for one, are neither true nor false
        return True
    if "__eq__" in {name for cls in type(given).__mro__[:-1] for name in vars(cls)}:
        return False
    # It compares by identity, so what it is made of decides.
    return getattr(given, "__dict__", None) == getattr(read, "__dict__", None)
