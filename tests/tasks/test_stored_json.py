"""Stored JSON: the task gets exactly what was accepted; anything else is refused at the start."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import re
import uuid
from collections import OrderedDict, deque
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import pytest
from django.db.models import TextChoices
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Json,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    create_model,
)
from pydantic_core import CoreSchema, core_schema

from tasks_app.exceptions import InvalidParams
from tasks_app.tasks.base import BaseTask, ProgressHandle

BERLIN = ZoneInfo("Europe/Berlin")
DAY = datetime.date(2026, 1, 2)
German = Annotated[datetime.date, PlainSerializer(lambda day: day.strftime("%d.%m.%Y"))]


class Size(enum.Enum):
    SMALL = (1, 2)
    LARGE = "large"


class State(TextChoices):
    OPEN = "open"


class Text(str): ...


class Animal(BaseModel):
    name: str
    _seen: int = PrivateAttr(default=0)


class Dog(Animal):
    tail: int = 1


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


@dataclasses.dataclass
class Point:
    x: decimal.Decimal
    y: Any = None


class Money:
    """Compares by identity, as classes do by default."""

    def __init__(self, amount: str, currency: str = "EUR") -> None:
        self.amount, self.currency = amount, currency

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.amount
            ),
        )


def task_of(params: type[BaseModel]) -> type[BaseTask]:
    class Made(BaseTask):
        Params = params

        def execute(self, progress: ProgressHandle, **params: Any) -> Any:
            seen.append(params)

    return Made


seen: list[dict[str, Any]] = []


def arrives(kind: Any, value: Any, *default: Any) -> Any:
    """Start a task with a value for a parameter of this type, and return what the task gets."""
    made = create_model("Made", value=(kind, *(default or (...,))))
    task = task_of(made)
    stored = json.loads(json.dumps(task.validate_params({"value": value})))
    task().run(ProgressHandle(), stored)
    return seen.pop()["value"]


def errors_of(params: type[BaseModel], given: Any) -> dict[str, str]:
    with pytest.raises(InvalidParams) as caught:
        task_of(params).validate_params(given)
    return caught.value.errors


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Any, {"a": [1, 1.5, "x", None, True]}),
        (dict, {"b": 1, "a": {"c": []}}),
        (OrderedDict[str, int], OrderedDict(b=1, a=2)),
        (tuple[int, str], (1, "x")),
        (deque[int], deque([1, 2])),
        (set[datetime.date], {DAY}),
        (frozenset[uuid.UUID], frozenset({uuid.UUID(int=7)})),
        (dict[int, str], {7: "x"}),
        (dict[datetime.date, decimal.Decimal], {DAY: decimal.Decimal("1.10")}),
        (bytes, b"hello"),
        (Size, Size.LARGE),
        (Animal, Animal(name="Rex")),
        (Animal | Dog, Dog(name="Rex", tail=2)),
        (Point, Point(decimal.Decimal("1.10"), [1])),
        (Json[list[int]], "[1, 2]"),
        (re.Pattern, re.compile("a+")),
        (datetime.datetime, datetime.datetime(2026, 1, 2)),  # noqa: DTZ001 - without a zone
        (datetime.time, datetime.time(12, tzinfo=datetime.UTC)),
        # A value of the base type that compares equal is accepted.
        (Any, State.OPEN),
        (Any, Text("x")),
        (dict[str, str], {State.OPEN: "x"}),
    ],
)
def test_accepted_value_arrives_unchanged(kind: Any, value: Any) -> None:
    assert arrives(kind, value) == create_model("Given", value=(kind, ...))(value=value).value


def test_values_unequal_to_themselves_arrive() -> None:
    number = Annotated[decimal.Decimal, Field(allow_inf_nan=True)]
    assert arrives(number, decimal.Decimal("NaN")).is_nan()
    assert vars(arrives(Money, Money("1.10"))) == vars(Money("1.10"))


@pytest.mark.parametrize("fold", [0, 1])
def test_ambiguous_time_arrives_unchanged(fold: int) -> None:
    """With `==` it equals nothing in another time zone, not even itself."""
    given = datetime.datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=BERLIN)
    assert arrives(datetime.datetime, given).isoformat() == given.isoformat()


@pytest.mark.parametrize(
    ("kind", "default", "arrived"),
    [
        (float, 500, 500.0),
        (pathlib.Path, "/tmp/x", pathlib.Path("/tmp/x")),
        (set[str], ["a"], {"a"}),
        (State, "open", State.OPEN),
        (int | None, None, None),
    ],
)
def test_default_is_converted_to_its_annotation(kind: Any, default: Any, arrived: Any) -> None:
    """Pydantic does not validate defaults, so the stored default is validated when it is read."""
    task = task_of(create_model("Made", value=(kind, default)))
    task().run(ProgressHandle(), task.validate_params({}))
    assert seen.pop() == {"value": arrived}


def test_private_attributes_are_not_stored() -> None:
    dog = Animal(name="Rex")
    dog._seen = 3
    assert arrives(Animal, dog)._seen == 0


ALTERED = "would not reach the task as it was given: the JSON that is stored reads as another value"
REFUSED = "would not reach the task: the JSON that is stored is refused when it is read"
ANNOTATE = "annotate the type of the value, of its items and of its keys"


@pytest.mark.parametrize(
    ("kind", "value", "messages"),
    [
        (Any, decimal.Decimal("1.10"), [ALTERED, ANNOTATE]),
        (Any, DAY, [ALTERED]),
        (Any, (1, 2), [ALTERED]),
        (Any, {1, 2}, [ALTERED]),
        (Any, SecretStr("hunter2"), [ALTERED]),
        (Any, Animal(name="Rex"), [ALTERED]),
        (dict, {7: "x"}, [ALTERED]),
        (dict, {1: "a", "1": "b"}, [ALTERED]),
        (dict[str | None, int], {None: 1}, [ALTERED]),
        (dict[tuple[int, int], str], {(1, 2): "a"}, [REFUSED]),
        (Size, Size.SMALL, [REFUSED]),
        (Literal[Size.LARGE], Size.LARGE, [REFUSED]),
        (Animal, Dog(name="Rex"), [ALTERED]),
        (Point, Point(decimal.Decimal(1), decimal.Decimal(1)), [ALTERED]),
        (re.Pattern, re.compile("a", re.IGNORECASE), [ALTERED]),
        (datetime.datetime, datetime.datetime(1850, 1, 1, tzinfo=BERLIN), [ALTERED]),
        (datetime.time, datetime.time(12, tzinfo=BERLIN), [ALTERED]),
        (Money, Money("1.10", "USD"), [ALTERED, "a class of your own needs __eq__"]),
        (German, DAY, [REFUSED, "a serializer of your own must write what is read"]),
        (Annotated[int, AfterValidator(lambda number: number + 1)], 1, [ALTERED]),
        (Annotated[list[str], BeforeValidator(str.split)], "a b", [REFUSED, "TypeError"]),
    ],
)
def test_value_that_would_change_is_refused(kind: Any, value: Any, messages: list[str]) -> None:
    errors = errors_of(create_model("Made", value=(kind, ...)), {"value": value})
    [(field, said)] = errors.items()
    # An error that Pydantic does not catch has no field.
    assert field.partition(".")[0] == ("" if "TypeError" in said else "value")
    for message in messages:
        assert message in said
    # The value may be secret.
    assert "hunter2" not in said


class Encoded(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")

    blob: bytes = b"hello"


def field_of(kind: Any, *default: Any, **options: Any) -> type[BaseModel]:
    return create_model("Made", name=(kind, Field(*default, **options)))


BY_WHO = "set serialization_alias='who', by which the field is read"


@pytest.mark.parametrize(
    ("params", "given", "errors"),
    [
        (field_of(str, "nobody", validation_alias="who"), {"who": "ada"}, {"who": BY_WHO}),
        (field_of(str, validation_alias="who"), {"who": "ada"}, {"who": BY_WHO}),
        (
            field_of(str, validation_alias=AliasChoices("who", "whom")),
            {"whom": "ada"},
            {"who": BY_WHO},
        ),
        (
            field_of(str, serialization_alias="Name"),
            {"name": "ada"},
            {"name": "set serialization_alias='name', by which the field is read"},
        ),
        (field_of(int, 10, exclude=True), {"name": 3}, {"name": "remove exclude=True"}),
        (field_of(int, exclude=True), {"name": 3}, {"name": "remove exclude=True"}),
        (field_of(int, None), {}, {"name": "allow None in its annotation"}),
        (Encoded, {}, {"blob": ALTERED}),
        (Loose, {"a": decimal.Decimal(1)}, {"a": ALTERED}),
        (Animal, Dog(name="Rex", tail=2), {"tail": ALTERED}),
    ],
)
def test_field_that_is_read_differently_is_refused(
    params: type[BaseModel], given: Any, errors: dict[str, str]
) -> None:
    actual = errors_of(params, given)
    assert actual.keys() == errors.keys()
    for field, message in errors.items():
        assert message in actual[field]


@pytest.mark.parametrize(
    ("params", "given"),
    [
        (field_of(int, 10, exclude=True), {"name": 10}),
        (field_of(str, validation_alias="who", serialization_alias="who"), {"who": "ada"}),
        (field_of(str, alias="who"), {"who": "ada"}),
        (Loose, {"a": [1]}),
    ],
)
def test_field_that_is_read_as_written_is_accepted(params: type[BaseModel], given: Any) -> None:
    task = task_of(params)
    task().run(ProgressHandle(), task.validate_params(given))
    seen.pop()


def test_instance_is_validated_in_its_current_state() -> None:
    params = create_model("Made", number=(Annotated[int, Field(gt=0)], ...), most=(int, 3))
    given = params(number=1)
    assert task_of(params).validate_params(given) == {"number": 1, "most": 3}
    given.number = -1  # type: ignore[attr-defined]
    assert "Input should be greater than 0" in errors_of(params, given)["number"]


def test_excluded_field_of_an_instance_is_refused() -> None:
    params = field_of(int, 10, exclude=True)
    assert "remove exclude=True" in errors_of(params, params(name=3))["name"]


def test_set_of_models_is_refused_with_a_message() -> None:
    class Point(BaseModel, frozen=True):
        x: int

    errors = errors_of(create_model("Made", value=(frozenset[Point], ...)), {"value": [{"x": 1}]})
    assert "unhashable" in errors[""]
