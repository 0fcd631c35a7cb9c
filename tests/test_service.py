"""The service that application code calls: options and refusals."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.test import override_settings
from django.utils import timezone
from pydantic import ValidationError

from tasks_app.exceptions import (
    DuplicateTask,
    IllegalTransition,
    InvalidParams,
    InvalidTask,
    TaskNotFound,
    UnknownTask,
)
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import TaskService, task_service
from tasks_app.states import TERMINAL, UNFINISHED, Status
from tests.more_tasks import Abstract
from tests.rows import claimed, ended, facts, last_fact, saved, snapshot
from tests.tasks import Add, Noop, Order, Urgent, WithModel

pytestmark = pytest.mark.django_db


def started(task: Any = Noop, params: Any = None, **options: Any) -> Task:
    return Task.objects.get(pk=task_service.start_task(task, params, **options).task_id)


# Start.


def test_start_writes_row_and_returns_stream_url() -> None:
    response = task_service.start_task(Add, {"a": 1})
    task = Task.objects.get()
    assert response == TaskStartResponse(
        task_id=task.pk, stream_url=f"/tasks/{task.pk}/stream/", status=Status.PENDING
    )
    assert (task.name, task.params) == ("tests.tasks.Add", {"a": 1, "b": 2})
    assert task.pk.version == 4
    assert facts(task) == ["task_queued"]


def test_site_without_urls_has_no_stream_url() -> None:
    with override_settings(ROOT_URLCONF="tests.test_models"):
        assert task_service.start_task(Noop).stream_url is None


def test_task_may_be_given_by_path() -> None:
    assert started("tests.tasks.Add", {"a": 1}).name == "tests.tasks.Add"


def test_missing_options_come_from_class_and_settings(settings: Any) -> None:
    settings.TASK_TIMEOUT_SECONDS = 77
    plain, urgent = started(Noop), started(Urgent)
    assert (plain.queue, plain.priority, plain.timeout_seconds) == ("default", 0, 77)
    assert (plain.max_attempts, plain.unique_key, plain.owner) == (1, None, None)
    assert (urgent.queue, urgent.priority, urgent.timeout_seconds) == ("urgent", 10, None)


def test_every_option_is_stored_in_the_row() -> None:
    owner = User.objects.create(username="ada")
    later = timezone.now() + timedelta(hours=1)
    task = started(
        Urgent,
        owner=owner,
        queue="mail",
        priority=-5,
        run_after=later,
        unique_key="k",
        timeout=1.5,
        max_attempts=4,
    )
    assert task.owner == owner
    assert (task.queue, task.priority, task.run_after) == ("mail", -5, later)
    assert (task.unique_key, task.timeout_seconds, task.max_attempts) == ("k", 1.5, 4)


@pytest.mark.parametrize("priority", [0, -100, 100])
def test_priority_zero_overrides_the_class(priority: int) -> None:
    assert started(Urgent, priority=priority).priority == priority


def test_timeout_none_means_no_timeout() -> None:
    assert started(Noop, timeout=None).timeout_seconds is None


@pytest.mark.parametrize("owner", [None, AnonymousUser()])
def test_task_may_have_no_owner(owner: Any) -> None:
    assert started(owner=owner).owner_id is None


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("owner", "ada", "Value error, must be a user, such as request.user, or None"),
        ("queue", "", "String should have at least 1 character"),
        ("queue", "x" * 101, "String should have at most 100 characters"),
        ("priority", 101, "Input should be less than or equal to 100"),
        ("priority", -101, "Input should be greater than or equal to -100"),
        ("priority", 1.5, "Input should be a valid integer, got a number with a fractional part"),
        ("unique_key", "", "String should have at least 1 character"),
        ("unique_key", "x" * 201, "String should have at most 200 characters"),
        ("max_attempts", 0, "Input should be greater than or equal to 1"),
        ("timeout", 0, "Input should be greater than 0"),
        ("timeout", -1, "Input should be greater than 0"),
        ("timeout", float("nan"), "Input should be a finite number"),
        ("run_after", "soon", "Input should be a valid datetime or date, input is too short"),
        (
            "run_after",
            datetime(2026, 1, 2),  # noqa: DTZ001 - the point of it
            "Value error, must be an aware datetime, as django.utils.timezone.now() returns",
        ),
    ],
)
def test_invalid_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task_service.start_task(Noop, **{option: value})
    assert {error["msg"] for error in caught.value.errors() if error["loc"][0] == option} >= {
        message
    }
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("queue", "x" * 200, "String should have at most 100 characters"),
        ("priority", 101, "Input should be less than or equal to 100"),
        ("timeout", -1, "Input should be greater than 0"),
        ("max_attempts", 0, "Input should be greater than or equal to 1"),
    ],
)
def test_invalid_option_of_a_class_is_named(option: str, value: Any, message: str) -> None:
    task = type("Wrong", (Noop,), {option: value})
    with pytest.raises(ValidationError) as caught:
        task_service.start_task(task)
    assert [(error["loc"], error["msg"]) for error in caught.value.errors()] == [
        ((option,), message)
    ]
    assert snapshot() == ([], [])


def test_unknown_option_is_named() -> None:
    with pytest.raises(ValidationError, match="colour\n  Extra inputs are not permitted"):
        task_service.start_many(Noop, [{}], colour="red")


@override_settings(USE_TZ=False)
def test_naive_times_are_required_without_use_tz() -> None:
    with pytest.raises(ValidationError, match="must be a naive datetime, because USE_TZ is off"):
        task_service.start_task(Noop, run_after=datetime(2026, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("task", "params", "error"),
    [
        (Add, {"a": "x"}, InvalidParams),
        (Add, {}, InvalidParams),
        ("tests.tasks.Gone", {}, UnknownTask),
        ("tests.tasks.Order", {}, UnknownTask),
        (Abstract, {}, InvalidTask),
    ],
)
def test_task_that_cannot_run_is_not_written(
    task: Any, params: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        task_service.start_task(task, params)
    assert snapshot() == ([], [])


def test_invalid_params_are_reported_by_field() -> None:
    with pytest.raises(InvalidParams) as caught:
        task_service.start_task(WithModel, {"number": -1})
    assert caught.value.errors == {"number": "Input should be greater than 0"}


def test_task_without_execute_is_not_started() -> None:
    with pytest.raises(InvalidTask) as caught:
        task_service.start_task(Abstract)
    assert str(caught.value) == "Abstract has no execute() of its own, so it cannot run."


def test_params_may_be_a_model() -> None:
    assert started(WithModel, Order(number=3)).params == {"number": 3, "kind": "import"}


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_unique_key_of_an_unfinished_task_is_refused(status: Status) -> None:
    holder = saved(status, unique_key="k")
    with pytest.raises(DuplicateTask) as caught:
        task_service.start_task(Noop, unique_key="k")
    assert caught.value.task_id == holder.pk


@pytest.mark.django_db(transaction=True)
def test_start_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        task_service.start_task(Noop)
        transaction.set_rollback(True)
    assert snapshot() == ([], [])


# Start many.


def test_start_many_keeps_order() -> None:
    responses = task_service.start_many(Add, ({"a": number} for number in range(5)), queue="mail")
    tasks = {task.pk: task for task in Task.objects.all()}
    in_order = [tasks[response.task_id] for response in responses]
    assert [task.params["a"] for task in in_order] == [0, 1, 2, 3, 4]
    assert sorted(in_order, key=lambda task: task.run_after) == in_order
    assert {task.queue for task in in_order} == {"mail"}
    assert [response.status for response in responses] == [Status.PENDING] * 5


def test_start_many_accepts_an_empty_list() -> None:
    assert task_service.start_many(Noop, []) == []


def test_one_invalid_item_starts_none() -> None:
    with pytest.raises(InvalidParams):
        task_service.start_many(Add, [{"a": 1}, {"a": "x"}])
    assert snapshot() == ([], [])


def test_start_many_with_one_unique_key_is_a_duplicate() -> None:
    with pytest.raises(DuplicateTask):
        task_service.start_many(Noop, [{}, {}], unique_key="k")
    assert snapshot() == ([], [])


# Read.


def test_get_task_status() -> None:
    task = ended(Status.FAILED)
    info = task_service.get_task_status(task.pk)
    assert info == task.info()
    assert info.error is not None
    assert info.error.message == "The task failed."


@pytest.mark.parametrize("call", ["get_task_status", "cancel_task", "remove_completed_task"])
def test_missing_task_is_not_found(call: str) -> None:
    missing = uuid.uuid4()
    with pytest.raises(TaskNotFound) as caught:
        getattr(task_service, call)(missing)
    assert caught.value.task_id == missing


# End.


def test_cancel_records_the_user() -> None:
    ada = User.objects.create(username="ada")
    pending = started()
    info = task_service.cancel_task(pending.pk, by=ada)
    assert (info.status, info.cancel_requested) == (Status.CANCELLED, True)
    assert last_fact(pending).data == {"by": "ada"}


def test_cancel_of_a_running_task_is_a_request() -> None:
    task, _ = claimed()
    info = task_service.cancel_task(task.pk)
    assert (info.status, info.cancel_requested) == (Status.RUNNING, True)
    assert last_fact(task).data == {}


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_cancel_of_a_finished_task_is_refused(status: Status) -> None:
    task = ended(status)
    with pytest.raises(IllegalTransition, match=f"is {status} and cannot be cancelled"):
        task_service.cancel_task(task.pk)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_remove_deletes_the_history_too(status: Status) -> None:
    task, other = ended(status), ended(status)
    task_service.remove_completed_task(task.pk)
    assert list(Task.objects.all()) == [other]
    assert not TaskEvent.objects.exclude(task=other).exists()


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_remove_of_an_unfinished_task_is_refused(status: Status) -> None:
    task = saved(status)
    before = snapshot()
    with pytest.raises(IllegalTransition) as caught:
        task_service.remove_completed_task(task.pk)
    assert (
        str(caught.value) == f"Task {task.pk} is {status} and cannot be removed: cancel it first."
    )
    assert snapshot() == before


# Replacement by the site.


class Counting(TaskService):
    """A site's own service."""

    def start_task(self, *args: Any, **options: Any) -> TaskStartResponse:
        return super().start_task(*args, **options | {"queue": "counted"})


def test_site_replaces_the_service() -> None:
    with override_settings(TASK_SERVICE="tests.test_service.Counting"):
        assert isinstance(task_service, Counting)
        assert started().queue == "counted"
    assert not isinstance(task_service, Counting)
    assert isinstance(task_service, TaskService)
    assert started().queue == "default"
