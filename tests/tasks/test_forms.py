"""Forms made from a task's parameters: display, parsing and errors."""

from __future__ import annotations

import datetime
import decimal
import enum
import html
import json
import pathlib
import uuid
from typing import Annotated, Any, Literal

import pytest
from django.db.models import TextChoices
from django.forms import BoundField
from django.test import override_settings
from django.utils import timezone, translation
from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    Json,
    NaiveDatetime,
    Secret,
    SecretBytes,
    SecretStr,
    field_validator,
    model_validator,
)

from project.airports.tasks import ExportAirports, FarthestReachable, ImportAirports
from tasks_app.exceptions import InvalidTask
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tasks_app.tasks.forms import TaskForm, form_for
from tests.more_tasks import Everything, Secrets, StrictTask, TakesAlias
from tests.tasks import Add, Noop, WithModel

XSS = "<script>alert(1)</script>\"'&"
OSLO = override_settings(TIME_ZONE="Europe/Oslo", USE_TZ=True)


class Colour(enum.Enum):
    DARK_RED = "red"
    BLUE = 3


class Size(TextChoices):
    SMALL = "s", "Quite small"


class Point(BaseModel):
    x: int
    key: SecretStr = SecretStr("p4ss")


def of(*, model_config: ConfigDict | None = None, **fields: Any) -> type[TaskForm]:
    """Return a form class with these parameters: each is a type, or a type and a default."""
    namespace: dict[str, Any] = {"__annotations__": {}, "model_config": model_config or {}}
    for name, given in fields.items():
        kind, *default = given if isinstance(given, tuple) else (given,)
        namespace["__annotations__"][name] = kind
        if default:
            namespace[name] = default[0]
    return form_for(task_of(type("Made", (BaseModel,), namespace)))


def task_of(params: type[BaseModel]) -> type[BaseTask]:
    class Made(BaseTask):
        Params = params

        def execute(self, progress: ProgressHandle, **params: Any) -> None: ...

    return Made


def filled(form: type[TaskForm], **texts: str) -> TaskForm:
    return form({f"params-{name}": text for name, text in texts.items()})


def read(kind: Any, text: str, *default: Any) -> Any:
    """Return the parsed value of a text, or "(none)" if the model gets none."""
    form = filled(of(field=(kind, *default)), field=text)
    assert form.is_valid(), form.errors
    return form.params.get("field", "(none)")


def rendered_field(kind: Any, *default: Any) -> str:
    return str(of(field=(kind, *default))()["field"])


def errors_of(form: TaskForm) -> dict[str, list[str]]:
    assert not form.is_valid()
    return {name: list(errors) for name, errors in form.errors.items()}


def field(form: TaskForm, name: str) -> BoundField:
    return form[name]


# Parsing.


def test_form_of_a_task_without_parameters_has_no_fields() -> None:
    form = form_for(Noop)({})
    assert list(form) == []
    assert form.is_valid()
    assert form.params == {}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, " text ", " text "),
        (int, "3", 3),
        (float, "1.5", 1.5),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (datetime.date, "2028-02-29", datetime.date(2028, 2, 29)),
        (datetime.time, "10:30", datetime.time(10, 30)),
        (datetime.timedelta, "01:30:00", datetime.timedelta(hours=1, minutes=30)),
        (datetime.timedelta, "P1D", datetime.timedelta(days=1)),
        (
            uuid.UUID,
            "12345678-1234-5678-1234-567812345678",
            uuid.UUID(int=0x12345678 << 96 | 0x1234567812345678 << 32 | 0x12345678),
        ),
        (pathlib.Path, "/tmp/x", pathlib.Path("/tmp/x")),
        (HttpUrl, "https://example.org/", "https://example.org/"),
        (Literal["a", 2], "2", 2),
        (Colour, "red", Colour.DARK_RED),
        (Colour, "3", Colour.BLUE),
        (Size, "s", Size.SMALL),
        (Literal[Size.SMALL], "s", Size.SMALL),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (set[str], '["a"]', ["a"]),
        (tuple[int, str], '[1, "a"]', [1, "a"]),
        (Point, '{"x": 1}', {"x": 1}),
        (Point | None, '{"x": 1}', {"x": 1}),
        (int | str, '"3"', "3"),
        (int | str, "3", 3),
        (Any, "null", None),
        (Json[list[int]], '"[1]"', "[1]"),
        (SecretStr, "p4ss", "p4ss"),
        (SecretBytes, "p4ss", "p4ss"),
        (Secret[int], "3", 3),
        (int | None, "3", 3),
        (Annotated[int, Field(ge=1)] | None, "3", 3),
        (bool, "on", True),
        (bool, "", False),
        (bool | None, "true", True),
        (bool | None, "false", False),
        (bytes, "abc", "abc"),
    ],
    ids=str,
)
def test_text_is_converted_for_the_model(kind: Any, text: str, value: Any) -> None:
    got = read(kind, text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "default", "value"),
    [
        (int | None, ..., None),
        (int | None, 5, None),
        (Point | None, ..., None),
        (Point | None, Point(x=1), "(none)"),
        (dict[str, int] | None, {"a": 1}, None),
        (Colour | None, Colour.BLUE, None),
        (bool | None, True, None),
        (int, 5, "(none)"),
        (datetime.date, datetime.date(2026, 1, 1), "(none)"),
        (list[int], [1], "(none)"),
        (str, "x", ""),
        (SecretStr, SecretStr("p4ss"), "(none)"),
        (SecretStr | None, SecretStr("p4ss"), "(none)"),
        (SecretStr | None, None, "(none)"),
        (SecretStr | None, ..., None),
        (bool, True, False),
    ],
    ids=str,
)
def test_empty_field_is_none_or_the_default(kind: Any, default: Any, value: Any) -> None:
    given = [] if default is ... else [default]
    assert read(kind, "", *given) == value


def test_empty_required_field_is_an_error() -> None:
    form = filled(of(word=str, number=int, day=datetime.date, points=list[int], colour=Colour))
    assert errors_of(form) == {
        name: ["Required."] for name in ("word", "number", "day", "points", "colour")
    }


def test_missing_field_is_not_passed() -> None:
    form = filled(of(word=(str, "x"), number=(int | None, 3), flag=(bool | None, True)))
    assert form.is_valid()
    assert form.params == {}


def test_strict_model_gets_its_types() -> None:
    form = filled(form_for(StrictTask), day="2026-01-02", number="3")
    assert form.is_valid()
    assert form.params == {"day": datetime.date(2026, 1, 2), "number": 3}
    strict = ConfigDict(strict=True)
    form = filled(
        of(model_config=strict, days=set[datetime.date], colour=Colour, path=pathlib.Path),
        days='["2026-01-02"]',
        colour="red",
        path="/",
    )
    assert form.is_valid(), form.errors
    assert form.params["days"] == {datetime.date(2026, 1, 2)}
    bad = filled(of(model_config=strict, days=set[int]), days='["x"]')
    assert "days" in errors_of(bad)


def test_parameter_is_passed_by_the_name_the_model_takes() -> None:
    form = filled(form_for(TakesAlias), **{"from": "3"})
    assert form.is_valid()
    assert form.params == {"from": 3}
    assert errors_of(filled(form_for(TakesAlias), **{"from": "x"})).keys() == {"from"}
    alias = AliasChoices("number", "no")
    chosen = of(n=(int, Field(validation_alias=alias, serialization_alias="number")))
    assert filled(chosen, number="3").is_valid()


def test_parameters_may_have_names_of_form_attributes() -> None:
    names = ["task", "prefix", "data", "fields", "is_valid", "queue", "params"]
    form = filled(of(**dict.fromkeys(names, int)), **dict.fromkeys(names, "1"))
    assert form.is_valid(), form.errors
    assert form.params == dict.fromkeys(names, 1)


def test_one_field_of_each_type() -> None:
    form = filled(
        form_for(Everything),
        day="2026-01-02",
        moment="2026-01-02T03:04",
        amount="1.5",
        path="/tmp",
        key=str(uuid.uuid4()),
        colour="red",
        items='[{"sku": "a", "price": "1.2"}]',
        by_name="{}",
        pair='[1, "a"]',
        tags='["x"]',
    )
    assert form.is_valid(), form.errors


# Times.


@OSLO
def test_time_is_in_the_current_time_zone() -> None:
    with timezone.override("Europe/Oslo"):
        value = read(datetime.datetime, "2026-07-01T12:00")
    assert value.utcoffset() == datetime.timedelta(hours=2)
    assert read(datetime.datetime, "2026-07-01T12:00Z").utcoffset() == datetime.timedelta()
    assert read(NaiveDatetime, "2026-07-01T12:00").tzinfo is None
    assert read(AwareDatetime, "2026-07-01T12:00").tzinfo is not None


@OSLO
def test_time_skipped_by_summer_time_is_an_error() -> None:
    with timezone.override("Europe/Oslo"):
        form = filled(of(at=datetime.datetime), at="2026-03-29T02:30")
        [error] = errors_of(form)["at"]
    assert "Europe/Oslo" in error


@override_settings(USE_TZ=False)
def test_time_has_no_zone_without_use_tz() -> None:
    assert read(datetime.datetime, "2026-07-01T12:00").tzinfo is None
    assert read(AwareDatetime, "2026-07-01T12:00").tzinfo is not None


@OSLO
def test_default_time_is_shown_in_the_current_time_zone() -> None:
    noon = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
    with timezone.override("Europe/Oslo"):
        assert 'type="datetime-local"' in rendered_field(datetime.datetime, noon)
        assert 'value="2026-07-01T14:00:00"' in rendered_field(datetime.datetime, noon)


# Display.


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        (int, 5, ['type="number"', 'value="5"', 'step="1"']),
        (float, 0.5, ['type="number"', 'value="0.5"', 'step="any"']),
        (decimal.Decimal, decimal.Decimal("1.10"), ['value="1.10"']),
        (str, "x", ['type="text"', 'value="x"']),
        (str, "a\nb", ["<textarea", "a\nb</textarea>"]),
        (datetime.date, datetime.date(2026, 1, 2), ['type="date"', 'value="2026-01-02"']),
        (datetime.timedelta, datetime.timedelta(hours=1), ['type="text"', 'value="PT1H"']),
        (HttpUrl, HttpUrl("https://example.org/"), ['type="url"', 'value="https://example.org/"']),
        (bool, True, ['type="checkbox"', "checked"]),
        (bool | None, True, ['<option value="true" selected>Yes']),
        (bool | None, None, ['<option value="" selected>']),
        (Colour, Colour.BLUE, ['value="3" selected>Blue', ">Dark red<"]),
        (Colour | None, None, ['value="" selected']),
        (Size, Size.SMALL, ['value="s" selected>Quite small']),
        (Literal["a", None], None, ['value="" selected', ">a<"]),
        (Literal["1", 1], 1, ['value="1" selected>1', 'value="0">1']),
        (list[int], [1], ["<textarea", "[\n  1\n]</textarea>"]),
        (uuid.UUID, Field(default_factory=uuid.uuid4), ['value="']),
    ],
    ids=str,
)
def test_defaults_are_shown(kind: Any, default: Any, expected: list[str]) -> None:
    rendered = rendered_field(kind, default)
    for text in expected:
        assert text in rendered


def test_shown_defaults_are_read_back_unchanged() -> None:
    """A form that is submitted as rendered changes nothing."""
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=datetime.UTC)
    defaults: dict[str, tuple[Any, Any]] = {
        "number": (int, 5),
        "part": (float, 0.25),
        "moment": (datetime.datetime, moment),
        "long": (datetime.timedelta, datetime.timedelta(days=2, seconds=3)),
        "points": (list[Colour], [Colour.BLUE]),
        "colour": (Colour, Colour.DARK_RED),
        "size": (Size | None, None),
        "flag": (bool, True),
        "word": (str | None, "x"),
    }
    made = of(**defaults)
    texts = {name: made()[name].value() for name in defaults}
    form = filled(made, **{name: text for name, text in texts.items() if text not in (None, False)})
    assert form.is_valid(), form.errors
    model = made.task.params_model()
    given = model.model_validate(form.params)
    assert given == model.model_validate({})


def test_default_factory_runs_for_each_form() -> None:
    made = of(key=(uuid.UUID, Field(default_factory=uuid.uuid4)))
    assert made()["key"].value() != made()["key"].value()


def test_required_choice_is_not_preselected() -> None:
    assert '<option value="" selected>---------' in rendered_field(Colour)
    assert '<option value=""' not in rendered_field(Colour, Colour.BLUE)


def test_labels_and_attributes_of_a_field() -> None:
    form = of(
        row_limit=(int, Field(3, description=XSS, examples=[10])),
        other=(int, Field(title="The other", ge=1, le=9)),
        inner=(Annotated[int, Field(ge=2, description="Deep")] | None, None),
        above=(int, Field(gt=3)),
        name=(str, Field(max_length=20, min_length=2)),
        essay=(str, Field(max_length=5_000)),
        points=(list[int], Field([], description="Some", examples=[[1, 2]])),
        more=(list[int], []),
    )()
    assert field(form, "row_limit").label == "Row limit"
    assert field(form, "row_limit").help_text == html.escape(XSS)
    assert 'placeholder="10"' in str(form["row_limit"])
    assert "aria-describedby" in str(form["row_limit"])
    assert field(form, "other").label == "The other"
    assert 'min="1"' in str(form["other"])
    assert 'max="9"' in str(form["other"])
    assert "required" in str(form["other"])
    assert "required" not in str(form["row_limit"])
    assert 'min="2"' in str(form["inner"])
    assert field(form, "inner").help_text == "Deep"
    assert 'min="4"' in str(form["above"])
    assert 'minlength="2"' in str(form["name"])
    assert 'maxlength="20"' in str(form["name"])
    assert "<textarea" in str(form["essay"])
    assert str(field(form, "points").help_text) == "Some (JSON)"
    assert 'placeholder="[1, 2]"' in str(form["points"])
    assert str(field(form, "more").help_text) == "JSON"


def test_text_is_escaped() -> None:
    class Loud(BaseModel):
        name: str = Field(XSS, title=XSS, description=XSS, examples=[XSS])
        kind: Literal["<b>"] = "<b>"
        data: dict[str, str] = {"</textarea>": XSS}

        @field_validator("name")
        @classmethod
        def refuse(cls, value: str) -> str:
            raise ValueError(f"not {value}")

    form = filled(form_for(task_of(Loud)), name=XSS, kind="<i>", data='{"</textarea><b>": ')
    for rendered in (form.as_div(), form_for(task_of(Loud))().as_div()):
        assert "<script>" not in rendered
        assert "<b>" not in rendered
        assert "<i>" not in rendered
    assert html.escape(f"not {XSS}") in form.as_div()


# Secrets.


@pytest.mark.parametrize(
    "kind",
    [
        SecretStr,
        SecretBytes,
        Secret[str],
        SecretStr | None,
        list[SecretStr],
        dict[str, Secret[str]],
        Point,
        list[Point],
        int | Point,
        Annotated[str, Field(json_schema_extra={"format": "password"})],
        Annotated[str, Field(json_schema_extra={"writeOnly": True})],
    ],
    ids=str,
)
def test_secret_is_never_shown_again(kind: Any) -> None:
    made = of(field=kind, other=int)
    form = filled(made, field='{"x": "s3cret"}', other="x")
    assert "other" in errors_of(form)
    assert "s3cret" not in form.as_div()


def test_secret_default_is_hidden_and_used() -> None:
    made = of(
        word=(SecretStr, SecretStr("p4ss")),
        point=(Point, Point(x=1)),
        keys=(list[Secret[int]], [Secret(77)]),
    )
    rendered = made().as_div()
    assert 'type="password"' in rendered
    for secret in ("p4ss", "77", "****"):
        assert secret not in rendered
    form = filled(made)
    assert form.is_valid(), form.errors
    assert made.task.validate_params(form.params) == {
        "word": "p4ss",
        "point": {"x": 1, "key": "p4ss"},
        "keys": [77],
    }


def test_secrets_of_a_task() -> None:
    form = filled(
        form_for(Secrets),
        password="a",
        token="b",
        items='[{"sku": "s", "price": 1, "key": "c"}]',
        by_name="{}",
    )
    assert form.is_valid(), form.errors
    assert form.task.validate_params(form.params)["items"][0]["key"] == "c"


# Errors.


def test_error_is_shown_at_its_field_and_keeps_the_text() -> None:
    form = filled(form_for(Add), a="one", b="2")
    assert errors_of(form) == {"a": ["Must be a whole number."]}
    rendered = str(form["a"])
    assert 'value="one"' in rendered
    assert 'aria-invalid="true"' in rendered
    assert f'aria-describedby="{form["a"].auto_id}_error"' in rendered


def test_unknown_choice_is_refused_by_the_model() -> None:
    form = filled(form_for(WithModel), number="0", kind="smuggle")
    assert errors_of(form) == {
        "number": ["Must be more than 0."],
        "kind": ["Must be one of these: 'import' or 'export'."],
    }


def test_nested_error_has_its_path() -> None:
    form = filled(
        of(points=list[Point], both=int | list[int]),
        points='[{"x": 1}, {"x": "a", "key": 3}]',
        both='["x"]',
    )
    found = errors_of(form)
    assert found["points"] == [
        "1.x: Must be a whole number.",
        "1.key: Must be text.",
    ]
    assert {error.partition(":")[0] for error in found["both"]} == {"int", "list[int].0"}


def test_invalid_json_error_has_line_and_column() -> None:
    form = filled(of(points=list[int], other=int), points="[1,\n 2", other="x")
    found = errors_of(form)
    assert found["points"] == ["Invalid JSON at line 2, column 3: Expecting ',' delimiter."]
    assert found.keys() == {"points", "other"}
    assert "[1,\n 2</textarea>" in str(form["points"])
    deep = filled(of(points=Any), points="[" * 200_000)
    assert "Invalid JSON" in errors_of(deep)["points"][0]


def test_error_of_the_whole_model_belongs_to_no_field() -> None:
    class Range(BaseModel):
        low: int = 0
        high: int = 0

        @model_validator(mode="after")
        def in_order(self) -> Range:
            if self.low > self.high:
                raise ValueError("low must not be above high")
            return self

    form = filled(form_for(task_of(Range)), low="3", high="1")
    assert errors_of(form) == {"__all__": ["low must not be above high"]}
    assert errors_of(filled(form_for(task_of(Range)), low="x", high="1")).keys() == {"low"}


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_unstorable_text_is_refused(text: str) -> None:
    assert errors_of(filled(of(word=str), word=text))


@pytest.mark.parametrize("text", ["nan", "inf", "1e999"])
def test_non_finite_number_is_refused(text: str) -> None:
    assert errors_of(filled(of(number=float), number=text))


def test_custom_type_uses_json() -> None:
    class Odd:
        @classmethod
        def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
            from pydantic_core import core_schema

            return core_schema.no_info_plain_validator_function(
                lambda value: value, serialization=core_schema.to_string_ser_schema()
            )

    made = of(odd=Odd, call=(Any, XSS))
    assert "<textarea" in str(made()["odd"])
    assert read(Odd, '"x"') == "x"


def test_task_with_unreadable_parameters_raises() -> None:
    class Nameless(BaseTask):
        def execute(self, progress: ProgressHandle, **anything: Any) -> None: ...

    with pytest.raises(InvalidTask, match="declares nothing"):
        form_for(Nameless)


def test_form_is_translated() -> None:
    with translation.override("de"):
        assert ">Ja<" in rendered_field(bool | None)


@pytest.mark.parametrize("task", [ImportAirports, ExportAirports, FarthestReachable])
def test_unchanged_forms_of_site_tasks_are_valid(task: type[BaseTask]) -> None:
    form = form_for(task)()
    values = {name: form[name].value() for name in form.fields}
    sent = filled(form_for(task), **{name: str(value) for name, value in values.items() if value})
    assert sent.is_valid(), sent.errors
    assert task.validate_params(sent.params) == task.validate_params({})
    assert json.dumps(task.validate_params(sent.params))
