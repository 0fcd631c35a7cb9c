"""Actions on one task, and the errors if they are not possible."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tasks_app.exceptions import TaskNotFound
from tasks_app.models import Task
from tasks_app.service import TaskService
from tasks_app.states import RETRIABLE, TERMINAL, UNFINISHED, Status
from tests.api.asking import API, client_of, problem, someone
from tests.rows import claimed, ended, enqueued, fresh, last_fact, saved, snapshot
from tests.store.test_retention import KEEPING, site_table

pytestmark = pytest.mark.django_db

NOT_FOUND = {"detail": "Task not found, or you don't have permission to view it."}


@pytest.fixture
def ada() -> User:
    return someone("start_task")


@pytest.fixture
def client(ada: User) -> Client:
    return client_of(ada)


def of(task: Any, what: str = "") -> str:
    return f"{API}{getattr(task, 'pk', task)}{what and '/'}{what}"


@pytest.mark.parametrize("what", ["", "status"])
def test_task_has_the_same_form_as_elsewhere(ada: User, client: Client, what: str) -> None:
    task = saved(Status.FAILED, owner=ada, error_traceback="Traceback: secret")
    response = client.get(of(task, what))
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    assert response.json() == task.info().model_dump(mode="json")
    assert b"secret" not in response.content
    assert "no-store" in response["Cache-Control"]


@pytest.mark.parametrize("what", ["", "status", "events"])
def test_other_users_task_is_not_found(client: Client, what: str) -> None:
    for task in (saved(owner=someone()), saved(), uuid.uuid4()):
        assert problem(client.get(of(task, what)), 404) == NOT_FOUND


# Cancel.


def test_cancel(ada: User, client: Client) -> None:
    task = enqueued(owner=ada)
    response = client.post(of(task, "cancel"))
    assert response.status_code == 200
    assert response.json() == fresh(task).info().model_dump(mode="json")
    assert response.json()["status"] == "cancelled"
    assert last_fact(task).data == {"by": ada.username}


def test_cancel_of_running_task_is_a_request(ada: User, client: Client) -> None:
    task, _ = claimed(owner=ada)
    info = client.post(of(task, "cancel")).json()
    assert (info["status"], info["cancel_requested"]) == ("running", True)


def test_canceller_gets_only_the_status(ada: User) -> None:
    task, _ = claimed(owner=ada)
    response = client_of(someone("cancel_task")).post(of(task, "cancel"))
    assert response.json() == {
        "task_id": str(task.pk),
        "status": "running",
        "cancel_requested": True,
    }


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_finished_task_cannot_be_cancelled(ada: User, client: Client, status: Status) -> None:
    task = ended(status, owner=ada)
    before = snapshot()
    assert problem(client.post(of(task, "cancel")), 409) == {
        "detail": f"Task {task.pk} is {status} and cannot be cancelled.",
        "task_status": status,
    }
    assert snapshot() == before


# Retry.


@pytest.mark.parametrize("status", sorted(RETRIABLE))
def test_retry(ada: User, client: Client, status: Status) -> None:
    task = ended(status, owner=ada, name="tests.api.tasks.Greet")
    response = client.post(of(task, "retry"))
    again = Task.objects.get(retried_from=task)
    assert response.status_code == 202
    assert response.json() == {
        "task_id": str(again.pk),
        "stream_url": of(again, "stream"),
        "status": "pending",
    }
    assert response["Location"] == of(again, "status")
    assert client.get(response["Location"]).json()["retried_from"] == str(task.pk)


@pytest.mark.parametrize("status", sorted(set(Status) - RETRIABLE))
def test_task_that_did_not_fail_cannot_be_retried(status: Status) -> None:
    task = saved(status)
    body = problem(client_of(someone("retry_task")).post(of(task, "retry")), 409)
    assert body == {
        "detail": f"Task {task.pk} is {status} and cannot be retried.",
        "task_status": status,
    }


@pytest.mark.parametrize("door", [API, "/tasks/"])
def test_task_without_a_class_cannot_be_retried(door: str) -> None:
    task = saved(Status.FAILED, name="shop.tasks.Gone")
    url = f"{door}{task.pk}/retry{'/' if door != API else ''}"
    answer = client_of(someone("retry_task")).post(url, headers={"Accept": "application/json"})
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("There is no task 'shop.tasks.Gone': ")
    assert not Task.objects.filter(retried_from=task).exists()


def test_new_task_is_named_only_to_users_who_may_see_it(ada: User, client: Client) -> None:
    task = ended(Status.FAILED, owner=ada, name="tests.api.tasks.Greet")
    again = client.post(of(task, "retry")).json()["task_id"]
    body = problem(client.post(of(task, "retry")), 409)
    detail = f"Task {task.pk} was already retried. Retry the new task instead."
    assert body == {
        "detail": detail,
        "task_status": "failed",
        "task": again,
    }
    hidden = problem(client_of(someone("retry_task")).post(of(task, "retry")), 409)
    assert hidden == {"detail": detail, "task_status": "failed"}


def test_unique_key_in_use_prevents_a_retry(ada: User, client: Client) -> None:
    task = ended(Status.FAILED, owner=ada, name="tests.api.tasks.Greet", unique_key="k")
    other = saved(unique_key="k")
    body = problem(client.post(of(task, "retry")), 409)
    assert "has not finished" in body["detail"]
    assert str(other.pk) not in body["detail"]
    assert "task" not in body


def test_unique_key_is_shown_only_to_users_who_may_see_the_task(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada, name="tests.api.tasks.Greet", unique_key="pay of bob")
    saved(unique_key="pay of bob")
    body = problem(client_of(ada).post(of(task, "retry")), 409)
    assert "'pay of bob'" in body["detail"]
    assert problem(client_of(someone("retry_task")).post(of(task, "retry")), 409) == {
        "detail": "Another task with the same unique key has not finished. Wait for it, or cancel "
        "it."
    }


def test_own_task_is_retried_only_if_it_can_be_started(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada, name="tests.api.tasks.Closed")
    assert problem(client_of(ada).post(of(task, "retry")), 403) == {
        "detail": "You don't have permission to retry this task."
    }


# Remove.


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_remove(ada: User, client: Client, status: Status) -> None:
    task = ended(status, owner=ada)
    response = client.delete(of(task))
    assert (response.status_code, response.content) == (204, b"")
    assert not Task.objects.exists()
    assert problem(client.delete(of(task)), 404) == NOT_FOUND


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_unfinished_task_cannot_be_removed(ada: User, client: Client, status: Status) -> None:
    task = saved(status, owner=ada)
    assert problem(client.delete(of(task)), 409) == {
        "detail": f"Task {task.pk} is {status} and cannot be removed: cancel it first.",
        "task_status": status,
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("on_delete", KEEPING)
def test_protected_task_cannot_be_removed(ada: User, client: Client, on_delete: Any) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    with site_table(on_delete) as model:
        model.objects.create(task=task)
        before = snapshot()
        body = problem(client.delete(of(task)), 409)
        assert snapshot() == before
    assert body == {
        "detail": f"Task {task.pk} cannot be removed: other rows of this site refer to it. "
        "Remove those first."
    }


# Missing permissions.

ACTS = {"cancel": ("post", "cancel"), "retry": ("post", "retry"), "remove": ("delete", "")}


@pytest.mark.parametrize("act", ACTS)
def test_viewer_without_permission_gets_403(act: str) -> None:
    task = saved(Status.FAILED, owner=someone())
    method, what = ACTS[act]
    before = snapshot()
    client = client_of(someone("view_task", is_staff=True))
    assert problem(getattr(client, method)(of(task, what)), 403) == {
        "detail": f"You don't have permission to {act} this task."
    }
    assert snapshot() == before


@pytest.mark.parametrize("act", ACTS)
def test_user_who_may_not_see_a_task_gets_404(client: Client, act: str) -> None:
    method, what = ACTS[act]
    there = getattr(client, method)(of(saved(Status.FAILED, owner=someone()), what))
    missing = getattr(client, method)(of(uuid.uuid4(), what))
    assert problem(there, 404) == problem(missing, 404) == NOT_FOUND


@pytest.mark.parametrize(
    ("act", "verb"),
    [
        ("cancel", "cancel_task"),
        ("retry", "retry_task"),
        ("remove", "remove_completed_task"),
    ],
)
def test_task_deleted_during_the_request_is_not_found(
    ada: User, client: Client, act: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = saved(Status.FAILED, owner=ada, name="tests.api.tasks.Greet")

    def gone(_self: TaskService, task_id: uuid.UUID, **_: Any) -> None:
        raise TaskNotFound(task_id)

    monkeypatch.setattr(TaskService, verb, gone)
    method, what = ACTS[act]
    assert problem(getattr(client, method)(of(task, what)), 404) == NOT_FOUND
