"""Task classes as authors write them, and the refusal of each mistake."""

from __future__ import annotations

import datetime
import decimal
import json
import pathlib
import uuid
from typing import Any

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr

from tasks_app.exceptions import (
    InvalidParams,
    InvalidResult,
    InvalidTask,
    TaskCancelled,
    UnknownTask,
)
from tasks_app.tasks.base import UNSET, BaseTask, resolve
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.tasks.stored_json import check_json
from tests import more_tasks, tasks
from tests.more_tasks import (
    Aliased,
    Bounded,
    Colour,
    Echo,
    Everything,
    Floats,
    Item,
    Secrets,
    SecretSet,
    StrictTask,
    Summarise,
    SummariseLoosely,
    Summary,
    TakesAlias,
    TakesComputed,
    TakesMore,
    Untyped,
)
from tests.rows import row
from tests.tasks import Add, Noop, Order, WithModel, WrongResult


def run(task: type[BaseTask], params: Any = None) -> Any:
    """Run a task as a worker does: with parameters that were stored in the row."""
    stored = json.loads(json.dumps(task.validate_params(params)))
    return task().run(ProgressHandle(), stored)


def errors_of(task: type[BaseTask], params: Any) -> dict[str, str]:
    with pytest.raises(InvalidParams) as caught:
        task.validate_params(params)
    return caught.value.errors


# Parameters.


def test_signature_declares_parameters() -> None:
    assert Add.validate_params({"a": 1}) == {"a": 1, "b": 2}
    assert Add.validate_params({"a": "40", "b": 2.0}) == {"a": 40, "b": 2}
    assert run(Add, {"a": 40}) == 42


def test_model_declares_parameters() -> None:
    assert WithModel.validate_params({"number": 1}) == {"number": 1, "kind": "import"}
    assert WithModel.validate_params(Order(number=7)) == {"number": 7, "kind": "import"}
    assert run(WithModel, {"number": 1, "kind": "export"}) == {"number": 1, "kind": "export"}


@pytest.mark.parametrize("params", [None, {}])
def test_task_without_parameters(params: Any) -> None:
    assert Noop.validate_params(params) == {}
    assert run(Noop, params) is None


@pytest.mark.parametrize(
    ("task", "params", "errors"),
    [
        (Add, {}, {"a": "Field required"}),
        (Add, None, {"a": "Field required"}),
        (
            Add,
            {"a": "x"},
            {"a": "Input should be a valid integer, unable to parse string as an integer"},
        ),
        (Add, {"a": 1, "c": 2}, {"c": "Extra inputs are not permitted"}),
        (Noop, {"a": 1}, {"a": "Extra inputs are not permitted"}),
        (Bounded, {"number": 4}, {"number": "Input should be less than or equal to 3"}),
        (WithModel, {"number": 0}, {"number": "Input should be greater than 0"}),
        (
            WithModel,
            {"number": 1, "kind": "x"},
            {"kind": "Input should be 'import' or 'export'"},
        ),
        (
            Add,
            {"a": None, "b": []},
            {"a": "Input should be a valid integer", "b": "Input should be a valid integer"},
        ),
        (
            Secrets,
            {
                "password": "p",
                "token": "t",
                "items": [{"sku": "x"}],
                "by_name": {"a": {"sku": 1, "price": 1}},
            },
            {
                "items.0.price": "Field required",
                "by_name.a.sku": "Input should be a valid string",
            },
        ),
    ],
)
def test_each_error_is_reported_by_field(
    task: type[BaseTask], params: Any, errors: dict[str, str]
) -> None:
    assert errors_of(task, params) == errors


def test_message_names_task_field_and_error() -> None:
    with pytest.raises(InvalidParams) as caught:
        Add.validate_params({"b": "x"})
    assert str(caught.value) == (
        "Invalid parameters for Add: a: Field required; "
        "b: Input should be a valid integer, unable to parse string as an integer"
    )


def test_params_in_the_row_are_validated_again_at_run() -> None:
    """They may come from an older version of the task."""
    with pytest.raises(InvalidParams, match="Invalid parameters for Add: a: Field required"):
        Add().run(ProgressHandle(), {})


def test_all_pydantic_types_survive_the_row() -> None:
    given: dict[str, Any] = {
        "day": datetime.date(2026, 1, 2),
        "moment": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "amount": decimal.Decimal("1.10"),
        "path": pathlib.Path("/tmp/x"),
        "key": uuid.UUID(int=7),
        "colour": Colour.BLUE,
        "items": [Item(sku="a", price=decimal.Decimal("2.50"))],
        "by_name": {"a": Item(sku="a", price=decimal.Decimal("2.50"))},
        "pair": (1, "x"),
        "tags": {"only"},
    }
    stored = Everything.validate_params(given)
    assert stored["day"] == "2026-01-02"
    assert stored["colour"] == "blue"
    assert stored["items"][0]["price"] == "2.50"
    assert stored["pair"] == [1, "x"]
    result = run(Everything, given)
    # As Pydantic reads it from JSON, which is what the row holds.
    expected = Everything.params_model().model_validate_json(json.dumps(stored))
    assert expected == Everything.params_model()(**given)
    assert result == repr([getattr(expected, name) for name in type(expected).model_fields])


def test_strict_model_reads_dates_from_the_row() -> None:
    assert run(StrictTask, {"day": datetime.date(2026, 1, 2), "number": 3}) == "2026-01-02 3"
    assert errors_of(StrictTask, {"day": "2026-01-02", "number": "3"}) == {
        "day": "Input should be a valid date",
        "number": "Input should be a valid integer",
    }


def test_secrets_reach_the_task_but_no_repr() -> None:
    given = {
        "password": "hunter2",
        "token": SecretBytes(b"t0ken"),
        "items": [Item(sku="a", price=decimal.Decimal(1), key=SecretStr("nested"))],
        "by_name": {"a": {"sku": "a", "price": 1, "key": "named"}},
    }
    assert run(Secrets, given) == ["hunter2", "t0ken", "nested", "named", None]
    assert run(Secrets, {**given, "maybe": SecretStr("perhaps")})[-1] == "perhaps"
    model = Secrets.params_model().model_validate(given)
    assert run(Secrets, model) == ["hunter2", "t0ken", "nested", "named", None]
    assert "hunter2" not in repr(model)


@pytest.mark.parametrize(
    ("task", "params", "result"),
    [
        (TakesAlias, {"from": 1}, 1),
        (TakesAlias, Aliased(**{"from": 1}), 1),
        (TakesComputed, {"number": 1}, 1),
        (TakesMore, {"colour": "red"}, {"colour": "red"}),
        (SecretSet, {"keys": ["hunter2"]}, ["hunter2"]),
    ],
)
def test_accepted_params_run(task: type[BaseTask], params: Any, result: Any) -> None:
    """Even if the model dumps its fields differently from how it takes them."""
    assert run(task, params) == result


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0b", "text with a NUL character cannot be stored; remove it"),
        ({"a\0b": 1}, "text with a NUL character cannot be stored; remove it"),
        ([{"x": ["\0"]}], "text with a NUL character cannot be stored; remove it"),
        ("\ud800", "'utf-8' codec can't encode character"),
        ("\\\0", "text with a NUL character cannot be stored; remove it"),
        (float("nan"), "Out of range float values are not JSON compliant"),
        ([float("-inf")], "Out of range float values are not JSON compliant"),
        (object(), "Unable to serialize unknown type: <class 'object'>"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        (CIRCLE, "Circular reference detected"),
    ],
)
def test_start_refuses_params_that_no_database_can_store(value: Any, expected: str) -> None:
    [error] = errors_of(Echo, {"value": value}).values()
    assert error.startswith(expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_floats_are_refused(value: float) -> None:
    [message] = errors_of(Floats, {"number": value}).values()
    assert message.startswith("Out of range float values are not JSON compliant")


@pytest.mark.parametrize(
    "value", ["\\u0000", "\\\\u0000", "😀", "\u2028", "é", "", [], {}, {"a": [None, 1.5]}]
)
def test_text_that_resembles_unstorable_text_is_accepted(value: Any) -> None:
    assert run(Echo, {"value": value}) == value
    check_json(value)


def test_lone_surrogate_is_refused() -> None:
    assert list(errors_of(Bounded, {"number": 1, "text": "\ud800"})) == [""]
    with pytest.raises(ValueError, match="surrogates not allowed"):
        check_json("\ud800")


def test_untyped_parameters_accept_anything() -> None:
    assert Untyped.validate_params({"value": [1]}) == {"value": [1], "other": 1}


# Results.


def test_return_annotation_declares_result() -> None:
    assert run(Summarise, {"rows": 3}) == {"rows": 3, "when": "2026-01-02"}
    assert Summarise.validate_result(Summary(rows=1, when=datetime.date(2026, 1, 2))) == {
        "rows": 1,
        "when": "2026-01-02",
    }


def test_result_attribute_declares_result() -> None:
    assert run(SummariseLoosely, {"rows": "3"}) == {"rows": 3, "when": "2026-01-02"}
    with pytest.raises(InvalidResult, match="SummariseLoosely returned an invalid result: "):
        run(SummariseLoosely, {"rows": "many"})


def test_wrong_result_error_says_what_was_wrong() -> None:
    with pytest.raises(InvalidResult) as caught:
        run(WrongResult)
    message = str(caught.value)
    assert message.startswith("WrongResult returned an invalid result: ")
    assert "unable to parse string as an integer" in message
    # The value is left out: it may be secret, and other people read errors.
    assert "seven" not in message


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "a\0b", "\ud800", object(), {1: object()}, b"\xff"]
)
def test_result_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidResult, match=r"^Echo returned an invalid result: "):
        Echo.validate_result(value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, 2), [1, 2]),
        (Item(sku="a", price=decimal.Decimal("1.5"), key=SecretStr("k")),
         {"sku": "a", "price": "1.5", "key": "**********"}),
    ],
)  # fmt: skip
def test_results_become_json(value: Any, stored: Any) -> None:
    assert Echo.validate_result(value) == stored


# Classes.


@pytest.mark.parametrize(
    ("task", "label"),
    [(Noop, "Noop"), (WithModel, "With model"), (Add, "Add two numbers")],
)
def test_class_has_verbose_name(task: type[BaseTask], label: str) -> None:
    assert task.verbose_name == label


def test_subclass_has_its_own_verbose_name() -> None:
    class SubtractOne(Add): ...

    class Named(Add):
        verbose_name = "Subtract two"

    assert (SubtractOne.verbose_name, Named.verbose_name) == ("Subtract one", "Subtract two")


def test_unset_options_use_settings() -> None:
    assert (Noop.queue, Noop.priority, Noop.timeout, Noop.max_attempts) == ("default", 0, UNSET, 1)
    assert repr(UNSET) == "UNSET"


def test_class_is_found_by_dotted_path() -> None:
    assert Add.name() == "tests.tasks.Add"
    assert resolve("tests.tasks.Add") is Add


def test_local_class_cannot_be_imported() -> None:
    class Local(BaseTask):
        def execute(self, progress: ProgressHandle) -> None: ...

    with pytest.raises(InvalidTask) as caught:
        Local.name()
    where = "test_local_class_cannot_be_imported.<locals>.Local"
    assert str(caught.value) == (
        f"{where} is not at the top level of tests.tasks.test_base, "
        f"so a worker could not import it. Move it there."
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tests.tasks.Missing", 'Module "tests.tasks" does not define a "Missing" attribute/class'),
        ("no.such.module.Task", "No module named 'no'"),
        ("nodots", "nodots doesn't look like a module path"),
        ("", " doesn't look like a module path"),
        (".foo", "Empty module name"),
        ("..a.b", "the 'package' argument is required to perform a relative import for '..a'"),
        ("tests.tasks.Order", "it is a 'ModelMetaclass', not a subclass of BaseTask"),
        ("tests.tasks.threading", "it is a 'module', not a subclass of BaseTask"),
        ("tests.rows.BROKEN", "it is a 'Failure', not a subclass of BaseTask"),
    ],
)
def test_unknown_task_error_says_what_was_found(name: str, reason: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        resolve(name)
    assert caught.value.name == name
    assert str(caught.value) == (
        f"There is no task {name!r}: {reason}. Name a subclass of BaseTask by its dotted path, "
        f"such as 'shop.tasks.ImportOrders'."
    )


@pytest.mark.parametrize(
    ("code", "reason"), [("1 / 0", "division by zero"), ("raise SystemExit", "SystemExit")]
)
def test_broken_module_is_unknown_task(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    """It breaks neither the pages that show rows of its tasks nor the process."""
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTask, match=rf"'broken_module\.Task': {reason}"):
        resolve("broken_module.Task")
    assert row(name="broken_module.Task").label == "broken_module.Task"


@pytest.mark.parametrize("stars", ["*args", "**kwargs"])
def test_signature_with_stars_is_refused(stars: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def execute(self, progress, {stars}): ...", namespace)
    task = type("Vague", (BaseTask,), {"execute": namespace["execute"]})
    with pytest.raises(InvalidTask) as caught:
        task.params_model()
    assert str(caught.value) == (
        f"Vague.execute takes {stars}, which declares nothing. "
        f"Name each parameter with its type, or set Params to a Pydantic model."
    )


def test_parameter_with_leading_underscore_is_refused() -> None:
    class Private(BaseTask):
        def execute(self, progress: ProgressHandle, _secret: int = 1) -> None: ...

    with pytest.raises(InvalidTask) as caught:
        Private.params_model()
    assert str(caught.value) == (
        "Private.execute takes _secret, but Pydantic allows no names that start with an "
        "underscore. Rename it."
    )


def test_parameter_of_unknown_type_is_refused() -> None:
    class Arbitrary(BaseTask):
        def execute(self, progress: ProgressHandle, other: ProgressHandle) -> None: ...

    message = r"^A parameter of Arbitrary\.execute has a type that Pydantic does not know: "
    with pytest.raises(InvalidTask, match=message):
        Arbitrary.params_model()


def test_parameter_may_have_name_of_a_model_method() -> None:
    """Without a warning, which would be an error here."""

    class Copies(BaseTask):
        def execute(self, progress: ProgressHandle, copy: bool = False, json: str = "") -> Any:
            return [copy, json]

    assert run(Copies, {"copy": True}) == [True, ""]


def test_unreadable_annotation_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("def execute(self, progress, a: 'Nowhere'): ...", namespace)
    task = type("Hidden", (BaseTask,), {"execute": namespace["execute"]})
    with pytest.raises(InvalidTask) as caught:
        task.params_model()
    assert str(caught.value) == (
        "An annotation of Hidden.execute cannot be read: name 'Nowhere' is not defined. "
        "Import the name at run time, not only under TYPE_CHECKING."
    )


def test_task_without_execute_raises() -> None:
    with pytest.raises(NotImplementedError, match=r"^Abstract must define execute\(\)$"):
        more_tasks.Abstract().run(ProgressHandle(), {})


def test_params_model_is_created_once() -> None:
    assert Add.params_model() is Add.params_model()
    assert Add.result_type() is Add.result_type()
    assert Add.params_model() is not Noop.params_model()


def test_subclass_has_its_own_parameters() -> None:
    Add.params_model()

    class Times(Add):
        def execute(self, progress: ProgressHandle, a: int, b: int = 2, c: int = 1) -> int:
            return (a + b) * c

    assert list(Times.params_model().model_fields) == ["a", "b", "c"]


def test_running_task_sees_that_it_is_cancelled() -> None:
    seen = []

    class Looks(BaseTask):
        def execute(self, progress: ProgressHandle) -> None:
            seen.append(self.is_cancelled)
            progress.stop(TaskCancelled())
            seen.append(self.is_cancelled)

    Looks().run(ProgressHandle(), {})
    assert seen == [False, True]


def test_errors_of_a_task_pass_through() -> None:
    with pytest.raises(ValueError, match=r"^it broke$"):
        run(tasks.Fail)


def test_task_runs_without_a_worker() -> None:
    """As the guide shows it."""
    handle = ProgressHandle()
    assert Add().execute(handle, a=1, b=1) == 2
    assert (handle.latest.text, handle.latest.value) == ("adding", 0.5)


def test_task_without_a_worker_is_not_cancelled() -> None:
    class Looks(BaseTask):
        def execute(self, progress: ProgressHandle) -> bool:
            return self.is_cancelled

    assert Looks().execute(ProgressHandle()) is False


def test_params_model_is_used_unchanged() -> None:
    assert isinstance(WithModel.params_model(), type)
    assert issubclass(WithModel.params_model(), BaseModel)
    assert WithModel.params_model() is Order
