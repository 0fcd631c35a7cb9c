"""Size limits of params, results and texts: refused or truncated, and documented in the guide."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from pydantic import ValidationError

from tasks_app.exceptions import InvalidParams, InvalidTask
from tasks_app.models import Task
from tasks_app.schemas import (
    ATTEMPTS_MAX,
    DEPTH_MAX,
    JSON_MAX,
    KEY_MAX,
    LOG_LINE_MAX,
    MESSAGE_MAX,
    NAME_MAX,
    PROGRESS_MAX,
    QUEUE_MAX,
    TRACEBACK_MAX,
    TYPE_MAX,
)
from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.worker.coordinator import Coordinator
from tests.docs.pages import GUIDE, section, table
from tests.more_tasks import Digits, Echo, LogsLines, Nested, Repeats, SaysMuch, nested
from tests.tasks import Noop

pytestmark = pytest.mark.django_db(transaction=True)

#: One, two, three and four bytes in UTF-8. The last one is two units in UTF-16.
LETTERS = ["a", "é", "€", "😀"]
#: The number of digits that an integer may have.
DIGITS = 4300


def run(task: type[BaseTask], params: dict[str, Any], **options: Any) -> Task:
    """Start a task, let a worker run it, and return its row."""
    started = task_service.start_task(task, params, **options)
    Coordinator(1, drain=True).run()
    return Task.objects.get(pk=started.task_id)


def refusal(task: type[BaseTask], params: dict[str, Any]) -> str:
    """Return the error of a refused start, which must create no task."""
    with pytest.raises(InvalidParams) as caught:
        task_service.start_task(task, params)
    assert not Task.objects.exists()
    [message] = caught.value.errors.values()
    return message


# Refused.


@pytest.mark.parametrize("letter", LETTERS)
def test_params_and_results_are_measured_in_bytes(letter: str) -> None:
    max_bytes = JSON_MAX - len('{"value": ""}')
    size = len(letter.encode())
    fits = letter * (max_bytes // size)
    assert run(Echo, {"value": fits}).result == fits
    Task.objects.all().delete()
    message = refusal(Echo, {"value": fits + letter})
    assert "1,048,576 is the most" in message
    times = (JSON_MAX - 2) // size
    assert run(Repeats, {"text": letter, "times": times}).status == Status.COMPLETED
    too_large = run(Repeats, {"text": letter, "times": times + 1})
    assert (too_large.status, too_large.error_type) == (Status.FAILED, "InvalidResult")
    assert "1,048,576 is the most" in too_large.error_message
    assert too_large.result is None


TOO_DEEP = f"levels deep, and {DEPTH_MAX} is the most|Maximum serialization depth exceeded"


def test_params_have_a_maximum_depth() -> None:
    """A worker can read everything that a start accepts."""
    fits = nested(DEPTH_MAX - 1)  # inside an object
    task = run(Echo, {"value": fits})
    assert (task.status, task.result) == (Status.COMPLETED, fits)
    Task.objects.all().delete()
    for levels in (DEPTH_MAX, 200, 300, 1_000, 100_000):
        assert re.search(TOO_DEEP, refusal(Echo, {"value": nested(levels)}))
    in_objects: Any = 0
    for _ in range(DEPTH_MAX):
        in_objects = {"a": in_objects, "b": [1]}
    assert re.search(TOO_DEEP, refusal(Echo, {"value": in_objects}))


def test_results_have_a_maximum_depth() -> None:
    assert run(Nested, {"levels": DEPTH_MAX}).result == nested(DEPTH_MAX)
    for levels in (DEPTH_MAX + 1, 300, 1_000, 100_000):
        task = run(Nested, {"levels": levels})
        assert (task.status, task.error_type) == (Status.FAILED, "InvalidResult")
        assert re.search(TOO_DEEP, task.error_message)


def test_wide_values_are_not_deep() -> None:
    rows = [{"a": [number]} for number in range(500)]
    assert run(Echo, {"value": rows}).result == rows


def test_circular_params_are_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert "Circular reference" in refusal(Echo, {"value": ring})


@pytest.mark.parametrize("value", [2**64, -(10**400), 10 ** (DIGITS - 1)])
def test_integers_may_be_large(value: int) -> None:
    task = run(Echo, {"value": value})
    assert (task.status, task.result) == (Status.COMPLETED, value)


def test_integers_have_a_maximum_number_of_digits() -> None:
    assert f"{DIGITS} digits" in refusal(Echo, {"value": 10**DIGITS})
    task = run(Digits, {"digits": DIGITS + 1})
    assert (task.status, task.error_type) == (Status.FAILED, "InvalidResult")
    assert f"{DIGITS} digits" in task.error_message


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(
    ("option", "most"),
    [("queue", QUEUE_MAX), ("unique_key", KEY_MAX), ("idempotency_key", KEY_MAX)],
)
def test_names_in_a_start_are_measured_in_characters(option: str, most: int, letter: str) -> None:
    owner = User.objects.create_user("ada")  # an idempotency key needs an owner
    task = run(Noop, {}, owner=owner, **{option: letter * most})
    assert getattr(task, option) == letter * most
    assert task.status == Status.COMPLETED
    for wrong in (letter * (most + 1), "", "a\0b", "\ud800"):
        with pytest.raises(ValidationError, match=option):
            task_service.start_task(Noop, owner=owner, **{option: wrong})  # type: ignore[arg-type]
    assert Task.objects.count() == 1


@pytest.mark.parametrize(
    ("option", "fits", "wrong"),
    [
        ("max_attempts", ATTEMPTS_MAX, [ATTEMPTS_MAX + 1, 2**63, 0, -1]),
        ("priority", 100, [101, -101, 2**63]),
        ("timeout", 1e300, [float("inf"), float("nan"), 0, -1]),
    ],
)
def test_numbers_in_a_start_have_bounds(option: str, fits: float, wrong: list[float]) -> None:
    task_service.start_task(Noop, **{option: fits})  # type: ignore[arg-type]
    for value in wrong:
        with pytest.raises(ValidationError, match=option):
            task_service.start_task(Noop, **{option: value})  # type: ignore[arg-type]
    assert Task.objects.count() == 1


def execute(self: BaseTask, progress: ProgressHandle) -> str:
    return "ran"


def of_length(characters: int) -> type[BaseTask]:
    """Return a task class at the top level of this module with a dotted path of this length."""
    name = "T" * (characters - len(__name__) - 1)
    cls = type(name, (BaseTask,), {"execute": execute, "__module__": __name__})
    globals()[name] = cls
    return cls


def test_dotted_path_must_fit_its_column() -> None:
    assert run(of_length(NAME_MAX), {}).result == "ran"
    with pytest.raises(InvalidTask, match=rf"at most {NAME_MAX}\. Rename it"):
        task_service.start_task(of_length(NAME_MAX + 1))
    assert Task.objects.count() == 1


# Truncated.


@pytest.mark.parametrize("letter", LETTERS)
def test_texts_are_truncated_between_characters_and_marked(letter: str) -> None:
    task = run(SaysMuch, {"text": letter, "times": 120_000})
    assert task.progress_text == letter * (PROGRESS_MAX - 1) + "…"
    [line] = task.events.filter(event_type=EventType.LOG)
    assert line.data["message"] == letter * (LOG_LINE_MAX - 1) + "…"
    assert task.error_message == letter * (MESSAGE_MAX - 1) + "…"
    assert len(task.error_traceback) == TRACEBACK_MAX
    assert task.error_traceback.startswith("Traceback (most recent call last):")
    assert task.error_traceback.endswith(letter + "…")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (3, []),
        (4, ["1 more line was dropped (TASK_MAX_LOG_LINES: 3)"]),
        (9, ["6 more lines were dropped (TASK_MAX_LOG_LINES: 3)"]),
    ],
)
def test_dropped_log_lines_are_counted(settings: Any, lines: int, expected: list[str]) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    logged = run(LogsLines, {"lines": lines}).events.filter(event_type=EventType.LOG)
    messages = [line.data["message"] for line in logged.order_by("id")]
    assert messages == ["line 0", "line 1", "line 2", *expected]


# The guide.


def test_guide_documents_the_limits() -> None:
    documented = {
        name.replace("`", ""): limit.partition(" ")[0] for name, limit, _ in table(GUIDE, "Sizes")
    }
    assert documented == {
        "parameters": f"{JSON_MAX:,}",
        "result": f"{JSON_MAX:,}",
        "nested lists and objects in either": f"{DEPTH_MAX:,}",
        "progress text": f"{PROGRESS_MAX:,}",
        "log line": f"{LOG_LINE_MAX:,}",
        "log lines": "`TASK_MAX_LOG_LINES`",
        "error type": f"{TYPE_MAX:,}",
        "error message": f"{MESSAGE_MAX:,}",
        "traceback": f"{TRACEBACK_MAX:,}",
        "dotted path of a task's class": f"{NAME_MAX:,}",
        "queue": f"{QUEUE_MAX:,}",
        "unique_key, idempotency_key": f"{KEY_MAX:,}",
        "max_attempts": f"{ATTEMPTS_MAX:,}",
    }
    text = section(GUIDE, "Sizes")
    assert f"more than {DIGITS:,} digits" in text


def test_columns_fit_the_limits() -> None:
    for field, limit in {
        "name": NAME_MAX,
        "queue": QUEUE_MAX,
        "unique_key": KEY_MAX,
        "idempotency_key": KEY_MAX,
        "error_type": TYPE_MAX,
    }.items():
        assert Task._meta.get_field(field).max_length == limit
