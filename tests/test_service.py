"""What application code calls: every option, every refusal."""

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


# Starting.


def test_start_writes_the_row_and_says_where_to_watch() -> None:
    response = task_service.start_task(Add, {"a": 1})
    task = Task.objects.get()
    assert response == TaskStartResponse(
        task_id=task.pk, stream_url=f"/tasks/{task.pk}/stream/", status=Status.PENDING
    )
    assert (task.name, task.params) == ("tests.tasks.Add", {"a": 1, "b": 2})
    assert task.pk.version == 4
    assert facts(task) == ["task_queued"]


def test_a_site_without_the_urls_has_no_stream() -> None:
    with override_settings(ROOT_URLCONF="tests.test_models"):
        assert task_service.start_task(Noop).stream_url is None


def test_a_task_is_named_by_its_path_as_well() -> None:
    assert started("tests.tasks.Add", {"a": 1}).name == "tests.tasks.Add"


def test_options_left_out_are_the_classs_and_the_sites(settings: Any) -> None:
    settings.TASK_TIMEOUT_SECONDS = 77
    plain, urgent = started(Noop), started(Urgent)
    assert (plain.queue, plain.priority, plain.timeout_seconds) == ("default", 0, 77)
    assert (plain.max_attempts, plain.unique_key, plain.owner) == (1, None, None)
    assert (urgent.queue, urgent.priority, urgent.timeout_seconds) == ("urgent", 10, None)


def test_every_option_goes_into_the_row() -> None:
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
def test_a_priority_of_nought_is_a_priority(priority: int) -> None:
    assert started(Urgent, priority=priority).priority == priority


def test_no_timeout_is_not_the_sites_timeout() -> None:
    assert started(Noop, timeout=None).timeout_seconds is None


@pytest.mark.parametrize("owner", [None, AnonymousUser()])
def test_nobody_may_own_a_task(owner: Any) -> None:
    assert started(owner=owner).owner_id is None


@pytest.mark.parametrize(
    ("option", "value", "fault"),
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
def test_an_option_that_makes_no_sense_is_named(option: str, value: Any, fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task_service.start_task(Noop, **{option: value})
    assert {error["msg"] for error in caught.value.errors() if error["loc"][0] == option} >= {fault}
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("queue", "x" * 200, "String should have at most 100 characters"),
        ("priority", 101, "Input should be less than or equal to 100"),
        ("timeout", -1, "Input should be greater than 0"),
        ("max_attempts", 0, "Input should be greater than or equal to 1"),
    ],
)
def test_an_option_of_a_class_that_makes_no_sense_is_named(
    option: str, value: Any, fault: str
) -> None:
    task = type("Wrong", (Noop,), {option: value})
    with pytest.raises(ValidationError) as caught:
        task_service.start_task(task)
    assert [(error["loc"], error["msg"]) for error in caught.value.errors()] == [((option,), fault)]
    assert snapshot() == ([], [])


def test_an_option_that_is_none_is_named() -> None:
    with pytest.raises(ValidationError, match="colour\n  Extra inputs are not permitted"):
        task_service.start_many(Noop, [{}], colour="red")


@override_settings(USE_TZ=False)
def test_where_there_are_no_zones_times_have_none() -> None:
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
def test_what_cannot_run_is_not_written(task: Any, params: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        task_service.start_task(task, params)
    assert snapshot() == ([], [])


def test_wrong_parameters_are_told_by_field() -> None:
    with pytest.raises(InvalidParams) as caught:
        task_service.start_task(WithModel, {"number": -1})
    assert caught.value.errors == {"number": "Input should be greater than 0"}


def test_a_task_without_execute_is_not_started() -> None:
    with pytest.raises(InvalidTask) as caught:
        task_service.start_task(Abstract)
    assert str(caught.value) == "Abstract has no execute() of its own, so it cannot run."


def test_parameters_may_be_a_model() -> None:
    assert started(WithModel, Order(number=3)).params == {"number": 3, "kind": "import"}


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_a_unique_key_keeps_others_out(status: Status) -> None:
    holder = saved(status, unique_key="k")
    with pytest.raises(DuplicateTask) as caught:
        task_service.start_task(Noop, unique_key="k")
    assert caught.value.task_id == holder.pk


@pytest.mark.django_db(transaction=True)
def test_a_start_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        task_service.start_task(Noop)
        transaction.set_rollback(True)
    assert snapshot() == ([], [])


# Starting many.


def test_many_start_in_order() -> None:
    responses = task_service.start_many(Add, ({"a": number} for number in range(5)), queue="mail")
    tasks = {task.pk: task for task in Task.objects.all()}
    in_order = [tasks[response.task_id] for response in responses]
    assert [task.params["a"] for task in in_order] == [0, 1, 2, 3, 4]
    assert sorted(in_order, key=lambda task: task.run_after) == in_order
    assert {task.queue for task in in_order} == {"mail"}
    assert [response.status for response in responses] == [Status.PENDING] * 5


def test_many_can_be_none() -> None:
    assert task_service.start_many(Noop, []) == []


def test_one_wrong_among_many_starts_none() -> None:
    with pytest.raises(InvalidParams):
        task_service.start_many(Add, [{"a": 1}, {"a": "x"}])
    assert snapshot() == ([], [])


def test_one_key_for_many_is_a_duplicate() -> None:
    with pytest.raises(DuplicateTask):
        task_service.start_many(Noop, [{}, {}], unique_key="k")
    assert snapshot() == ([], [])


# Looking.


def test_the_status_of_a_task() -> None:
    task = ended(Status.FAILED)
    info = task_service.get_task_status(task.pk)
    assert info == task.info()
    assert info.error is not None
    assert info.error.message == "The task failed."


@pytest.mark.parametrize("call", ["get_task_status", "cancel_task", "remove_completed_task"])
def test_what_is_not_there_is_not_found(call: str) -> None:
    missing = uuid.uuid4()
    with pytest.raises(TaskNotFound) as caught:
        getattr(task_service, call)(missing)
    assert caught.value.task_id == missing


# Ending.


def test_cancel_says_who() -> None:
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
def test_remove_takes_the_history_too(status: Status) -> None:
    task, other = ended(status), ended(status)
    task_service.remove_completed_task(task.pk)
    assert list(Task.objects.all()) == [other]
    assert not TaskEvent.objects.exclude(task=other).exists()


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_remove_leaves_what_has_not_finished(status: Status) -> None:
    task = saved(status)
    before = snapshot()
    with pytest.raises(IllegalTransition) as caught:
        task_service.remove_completed_task(task.pk)
    assert (
        str(caught.value) == f"Task {task.pk} is {status} and cannot be removed: cancel it first."
    )
    assert snapshot() == before


# The site's own.


class Counting(TaskService):
    """A service of a site's own."""

    def start_task(self, *args: Any, **options: Any) -> TaskStartResponse:
        return super().start_task(*args, **options | {"queue": "counted"})


def test_a_site_replaces_the_service() -> None:
    with override_settings(TASK_SERVICE="tests.test_service.Counting"):
        assert isinstance(task_service, Counting)
        assert started().queue == "counted"
    assert not isinstance(task_service, Counting)
    assert isinstance(task_service, TaskService)
    assert started().queue == "default"
