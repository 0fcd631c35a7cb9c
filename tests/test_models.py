"""Models: database constraints, visibility, and how rows describe themselves."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import IntegrityError, connection, transaction
from django.test import override_settings
from django.utils import timezone

from tasks_app.models import Task, TaskEvent, Worker, aware
from tasks_app.schemas import TaskError, TaskInfo, TaskProgressUpdate
from tasks_app.states import FACTS, TERMINAL, EventType, Status
from tests.rows import row, saved, worker

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
LEASED: dict[str, Any] = {"fencing_token": uuid.uuid4(), "lease_expires_at": NOW}


@pytest.mark.parametrize("status", Status)
def test_rows_of_these_tests_are_valid(status: Status) -> None:
    """So that the rows below are refused only for what they change."""
    saved(status)


@pytest.mark.parametrize(
    ("constraint", "status", "fields"),
    [
        ("tasks_progress_is_fraction", Status.RUNNING, {"progress": -0.001}),
        ("tasks_progress_is_fraction", Status.RUNNING, {"progress": 1.001}),
        ("tasks_terminal_has_finished_at", Status.PENDING, {"finished_at": NOW}),
        ("tasks_terminal_has_finished_at", Status.RUNNING, {"finished_at": NOW}),
        ("tasks_terminal_has_finished_at", Status.COMPLETED, {"finished_at": None}),
        ("tasks_terminal_has_finished_at", Status.FAILED, {"finished_at": None}),
        ("tasks_terminal_has_finished_at", Status.CANCELLED, {"finished_at": None}),
        ("tasks_running_is_claimed", Status.RUNNING, {"fencing_token": None}),
        ("tasks_running_is_claimed", Status.RUNNING, {"lease_expires_at": None}),
        ("tasks_running_is_claimed", Status.RUNNING, {"started_at": None}),
        ("tasks_running_is_claimed", Status.PENDING, LEASED),
        ("tasks_running_is_claimed", Status.PENDING, {"fencing_token": uuid.uuid4()}),
        ("tasks_running_is_claimed", Status.COMPLETED, {"lease_expires_at": NOW}),
        ("tasks_running_is_claimed", Status.FAILED, LEASED),
        ("tasks_running_is_claimed", Status.CANCELLED, LEASED),
        ("tasks_failed_has_error", Status.FAILED, {"error_type": ""}),
        ("tasks_failed_has_error", Status.COMPLETED, {"error_type": "ValueError"}),
        ("tasks_failed_has_error", Status.PENDING, {"error_type": "ValueError"}),
        ("tasks_attempt_in_range", Status.PENDING, {"attempt": 2, "max_attempts": 1}),
        ("tasks_attempt_in_range", Status.PENDING, {"attempt": 0, "max_attempts": 0}),
        ("tasks_timeout_positive", Status.PENDING, {"timeout_seconds": 0}),
        ("tasks_timeout_positive", Status.PENDING, {"timeout_seconds": -1}),
    ],
)
def test_row_must_match_its_status(constraint: str, status: Status, fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        saved(status, **fields)


def test_unknown_status_is_refused() -> None:
    task = row()
    task.status = "paused"
    with pytest.raises(IntegrityError, match="tasks_status_known"), transaction.atomic():
        task.save(force_insert=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"progress": 0.0},
        {"progress": 1.0},
        {"progress": None},
        {"timeout_seconds": None},
        {"timeout_seconds": 0.001},
        {"attempt": 3, "max_attempts": 3},
    ],
)
def test_values_at_the_limits_are_accepted(fields: dict[str, Any]) -> None:
    saved(Status.RUNNING, **fields)


@pytest.mark.parametrize("holder", sorted(set(Status) - TERMINAL))
@pytest.mark.parametrize("other", sorted(set(Status) - TERMINAL))
def test_two_unfinished_tasks_cannot_share_a_unique_key(holder: Status, other: Status) -> None:
    saved(holder, unique_key="k")
    with pytest.raises(IntegrityError, match="unique"), transaction.atomic():
        saved(other, unique_key="k")
    saved(other, unique_key="another")
    saved(other, unique_key=None)
    saved(other, unique_key=None)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_finished_tasks_may_share_a_unique_key(status: Status) -> None:
    for _ in range(2):
        saved(status, unique_key="k")
    saved(unique_key="k")


@pytest.mark.parametrize("kind", sorted(set(EventType) - FACTS))
def test_only_facts_are_stored(kind: EventType) -> None:
    task = saved()
    with pytest.raises(IntegrityError, match="tasks_event_is_fact"), transaction.atomic():
        TaskEvent.objects.create(task=task, event_type=kind, timestamp=NOW)


@pytest.mark.parametrize("second", sorted(event for event in FACTS if event.is_terminal))
@pytest.mark.parametrize("first", sorted(event for event in FACTS if event.is_terminal))
def test_task_has_at_most_one_terminal_event(first: EventType, second: EventType) -> None:
    task, other = saved(), saved()
    TaskEvent.objects.create(task=task, event_type=first, timestamp=NOW)
    TaskEvent.objects.create(task=other, event_type=second, timestamp=NOW)
    with pytest.raises(IntegrityError, match=r"(?i)unique"), transaction.atomic():
        TaskEvent.objects.create(task=task, event_type=second, timestamp=NOW)


def test_idempotency_key_is_unique_per_owner(django_user_model: Any) -> None:
    ada, ben = (django_user_model.objects.create_user(name) for name in ("ada", "ben"))
    saved(Status.COMPLETED, owner=ada, idempotency_key="k")
    saved(owner=ben, idempotency_key="k")
    saved(owner=ada)
    with pytest.raises(IntegrityError, match=r"(?i)unique"), transaction.atomic():
        saved(owner=ada, idempotency_key="k")


def test_every_constraint_is_tested_here() -> None:
    """A new constraint needs a row that it refuses."""
    names = {
        constraint.name for model in (Task, TaskEvent) for constraint in model._meta.constraints
    }
    assert names == {
        "tasks_status_known",
        "tasks_progress_is_fraction",
        "tasks_terminal_has_finished_at",
        "tasks_running_is_claimed",
        "tasks_failed_has_error",
        "tasks_attempt_in_range",
        "tasks_timeout_positive",
        "tasks_unique_key_unfinished",
        "tasks_idempotency_key",
        "tasks_event_is_fact",
        "tasks_one_terminal_event",
    }


def test_event_records_its_transaction_on_postgresql() -> None:
    event = TaskEvent.objects.create(task=saved(), event_type=EventType.LOG, timestamp=NOW)
    event.refresh_from_db()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()::text::bigint")
            assert cursor.fetchone() == (event.transaction,)
    else:
        assert event.transaction is None


def test_events_are_deleted_with_their_task() -> None:
    task = saved()
    TaskEvent.objects.create(task=task, event_type=EventType.LOG, timestamp=NOW)
    task.delete()
    assert not TaskEvent.objects.exists()


def test_task_outlives_its_owner_and_worker() -> None:
    owner, by = User.objects.create(username="ada"), worker()
    task = saved(Status.COMPLETED, owner=owner, worker=by)
    owner.delete()
    by.delete()
    task.refresh_from_db()
    assert (task.owner, task.worker) == (None, None)


# Visibility.


def user(name: str, **fields: Any) -> User:
    return User.objects.create(username=name, **fields)


def permitted(name: str, *codenames: str, **fields: Any) -> User:
    someone = user(name, **fields)
    permissions = Permission.objects.filter(
        content_type__app_label="tasks_app", codename__in=codenames
    )
    assert len(permissions) == len(codenames)
    someone.user_permissions.set(permissions)
    return User.objects.get(pk=someone.pk)


def test_visible_tasks_per_user() -> None:
    owner, other = user("owner"), user("other")
    mine, theirs, nobodys = saved(owner=owner), saved(owner=other), saved()
    everything = {mine.pk, theirs.pk, nobodys.pk}

    def visible(by: User | AnonymousUser) -> set[uuid.UUID]:
        return set(Task.objects.visible_to(by).values_list("pk", flat=True))

    assert visible(AnonymousUser()) == set()
    assert visible(owner) == {mine.pk}
    assert visible(other) == {theirs.pk}
    assert visible(user("stranger")) == set()
    assert visible(user("staff", is_staff=True)) == set()
    assert visible(permitted("changes", "change_task", "cancel_task", "delete_task")) == set()
    assert visible(permitted("viewer", "view_task")) == everything
    assert visible(permitted("staff viewer", "view_task", is_staff=True)) == everything
    assert visible(user("root", is_superuser=True)) == everything


@pytest.mark.parametrize("fields", [{}, {"is_superuser": True}])
def test_inactive_user_sees_nothing(fields: dict[str, bool]) -> None:
    inactive = user("gone", is_active=False, **fields)
    saved(owner=inactive)
    assert not Task.objects.visible_to(inactive).exists()


def test_visible_to_can_be_filtered() -> None:
    owner = user("owner")
    saved(owner=owner)
    failed = saved(Status.FAILED, owner=owner)
    saved(Status.FAILED)
    assert list(Task.objects.filter(status=Status.FAILED).visible_to(owner)) == [failed]


# QuerySets.


def test_querysets_by_status() -> None:
    rows = {status: saved(status) for status in Status}
    assert set(Task.objects.unfinished()) == {rows[Status.PENDING], rows[Status.RUNNING]}
    assert set(Task.objects.running()) == {rows[Status.RUNNING]}
    assert set(Task.objects.waiting([])) == {rows[Status.PENDING]}
    assert set(Task.objects.waiting(["elsewhere"])) == set()


def test_lost_workers(settings: Any) -> None:
    """A worker is lost one heartbeat after its lease expired, unless it signed off.

    Its tasks are rescued.
    """
    settings.TASK_LEASE_SECONDS, settings.TASK_HEARTBEAT_SECONDS = 30, 10
    now = timezone.now()

    def beating(seconds: float, **fields: Any) -> Worker:
        return worker(heartbeat_at=now - timedelta(seconds=seconds), **fields)

    beating(39)
    lost = beating(41)
    beating(41, stopped_at=now)
    assert list(Worker.objects.lost(now)) == list(Worker.primary.lost(now)) == [lost]


# Representation.


def test_info_of_a_new_task() -> None:
    task = saved(name="tests.tasks.Add", created_at=NOW, run_after=NOW, max_attempts=3)
    assert task.info() == TaskInfo(
        task_id=task.pk,
        name="tests.tasks.Add",
        status=Status.PENDING,
        progress=TaskProgressUpdate(text="", value=None),
        attempt=0,
        max_attempts=3,
        cancel_requested=False,
        created_time=NOW,
        run_after=NOW,
        start_time=None,
        end_time=None,
    )


def test_info_of_a_failed_task_has_only_the_public_error() -> None:
    task = saved(
        Status.FAILED,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        cancel_requested_at=NOW,
        progress=0.25,
        progress_text="a quarter",
        error_type="KeyError",
        error_message="'x'",
        error_traceback="Traceback: secret",
    )
    info = task.info()
    assert info.error == TaskError(type=None, message="The task failed.")
    task.public_error = "The key is missing."
    assert task.info().error == TaskError(type=None, message="The key is missing.")
    assert task.info(for_staff=True).error == TaskError(type="KeyError", message="'x'")
    assert info.progress == TaskProgressUpdate(text="a quarter", value=0.25)
    assert (info.run_after, info.start_time, info.end_time) == (None, NOW, NOW)
    assert info.cancel_requested
    assert "secret" not in info.model_dump_json()


def test_info_of_a_completed_task_has_its_result() -> None:
    task = saved(Status.COMPLETED, result={"rows": [1, None]})
    task.refresh_from_db()
    assert task.info().result == {"rows": [1, None]}
    assert task.info().error is None


@override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin")
def test_info_has_time_zones_without_use_tz() -> None:
    naive = NOW.replace(tzinfo=None)
    task = row(
        Status.COMPLETED,
        created_at=naive,
        run_after=naive,
        started_at=naive,
        finished_at=naive,
    )
    info = task.info()
    for value in (info.created_time, info.start_time, info.end_time):
        assert value is not None
        assert value.isoformat() == "2026-01-02T03:04:05.000006+01:00"
    assert aware(NOW) is NOW


def test_message_of_a_stored_event() -> None:
    event = TaskEvent(
        task=row(), event_type=EventType.LOG, timestamp=NOW, data={"level": "info", "message": "x"}
    )
    message = event.message()
    assert message.event_type is EventType.LOG
    assert (message.task_id, message.timestamp) == (event.task_id, NOW)
    assert message.data == {"level": "info", "message": "x"}


@pytest.mark.parametrize("words", [None, "The file is empty."])
@pytest.mark.parametrize("kind", [EventType.FAILED, EventType.RETRY_SCHEDULED])
def test_error_message_for_owner_has_only_the_public_error(kind: Any, words: str | None) -> None:
    error = {"type": "KeyError", "message": "'x'"}
    data: dict[str, Any] = {"error": error} | ({"public_error": words} if words else {})
    event = TaskEvent(task=row(), event_type=kind, timestamp=NOW, data=data)
    message = words or "The task failed."
    assert event.message().data == {"error": {"type": None, "message": message}}
    assert event.message(for_staff=True).data == {"error": error}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tests.tasks.Add", "Add two numbers"),
        ("tests.tasks.WithModel", "With model"),
        ("tests.tasks.Gone", "tests.tasks.Gone"),
        ("tests.tasks.Order", "tests.tasks.Order"),
        ("no.such.Thing", "no.such.Thing"),
        ("nodots", "nodots"),
    ],
)
def test_label_is_the_verbose_name_if_there_is_one(name: str, label: str) -> None:
    assert row(name=name).label == label


def test_stream_url_needs_the_urls_of_the_app() -> None:
    task = row()
    assert task.stream_url == f"/tasks/{task.pk}/stream/"
    with override_settings(ROOT_URLCONF="tests.test_models"):
        assert task.stream_url is None


#: The URLs of a site that does not include the app's.
urlpatterns: list[Any] = []


@pytest.mark.parametrize("status", Status)
def test_is_terminal(status: Status) -> None:
    assert row(status).is_terminal is (status in TERMINAL)


def test_str_of_rows() -> None:
    task = row(name="shop.tasks.Import")
    assert str(task) == f"shop.tasks.Import {task.pk}"
    assert str(worker(hostname="ada", pid=7)) == "ada:7"
    event = TaskEvent(task=task, event_type=EventType.LOG, timestamp=NOW)
    assert str(event) == f"task_log of {task.pk}"


def test_newest_task_comes_first() -> None:
    for age in (2, 0, 1):
        saved(name=str(age), age=timedelta(hours=age))
    assert [task.name for task in Task.objects.all()] == ["0", "1", "2"]
