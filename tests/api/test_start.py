"""Starting tasks: which ones, by whom, and how often."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, override_settings
from django.utils import timezone

from tasks_app.models import Task
from tasks_app.service import users_key
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tests.api.asking import API, GREET, client_of, problem, someone, start
from tests.harness import PATIENCE
from tests.rows import enqueued, saved, snapshot

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return someone("start_task")


@pytest.fixture
def client(ada: User) -> Client:
    return client_of(ada)


def test_task_is_started(ada: User, client: Client) -> None:
    response = start(client)
    task = Task.objects.get()
    assert response.status_code == 202
    assert response.json() == {
        "task_id": str(task.pk),
        "stream_url": f"{API}{task.pk}/stream",
        "status": "pending",
    }
    assert response["Location"] == f"{API}{task.pk}/status"
    assert "Idempotent-Replayed" not in response
    assert client.get(response["Location"]).json()["task_id"] == str(task.pk)
    assert (task.name, task.owner) == ("tests.api.tasks.Greet", ada)
    assert task.params == {"place": {"name": "Berne", "people": 3}, "day": None, "token": None}


def test_secrets_are_shown_nowhere(client: Client) -> None:
    params = GREET["params"] | {"token": "sesame"}
    response = start(client, GREET | {"params": params})
    assert Task.objects.get().params["token"] == "sesame"
    pages = [response, client.get(response["Location"]), client.get(API)]
    pages.append(client.get(f"{API}{Task.objects.get().pk}/events"))
    assert not any(b"sesame" in page.content or b"Berne" in page.content for page in pages)


def test_options_are_stored_in_the_row(client: Client) -> None:
    body = {"run_after": "2099-01-02T03:04:05+02:00", "unique_key": "k"}
    assert start(client, GREET | body).status_code == 202
    task = Task.objects.get()
    assert task.run_after == datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert task.unique_key == users_key(task.owner, "k")


@override_settings(USE_TZ=False)
def test_times_are_converted_without_use_tz(client: Client) -> None:
    assert start(client, GREET | {"run_after": "2099-01-02T03:04:05Z"}).status_code == 202
    listed = client.get(API, {"created_after": "1999-01-02T03:04:05Z"}).json()["tasks"]
    assert listed[0]["run_after"] == "2099-01-02T03:04:05Z"


@pytest.mark.parametrize(
    "name",
    ["tests.api.tasks.Closed", "tests.api.tasks.Reserved", "tests.api.tasks.Gone", "os.system"],
)
def test_task_that_may_not_be_started_looks_unknown(client: Client, name: str) -> None:
    before = snapshot()
    body = problem(start(client, {"task": name}), 422)
    message = body["errors"]["task"]
    assert message.startswith(f"There is no task {name!r}: ")
    assert message.endswith("Or you don't have permission to start it.")
    assert not any(
        f"tests.api.tasks.{other}" in message.split(": ", 1)[1] for other in ("Closed", "Reserved")
    )
    assert snapshot() == before


def test_start_permission_of_a_task() -> None:
    client = client_of(someone("change_worker"))
    assert start(client, {"task": "tests.api.tasks.Reserved"}).status_code == 202
    assert problem(start(client), 422)["errors"].keys() == {"task"}


@pytest.mark.parametrize("fields", [{}, {"is_staff": True}])
def test_user_who_can_start_nothing_gets_403(fields: dict[str, Any]) -> None:
    client = client_of(someone("view_task", "add_task", **fields))
    for name in ("tests.api.tasks.Greet", "tests.api.tasks.Gone"):
        assert problem(start(client, {"task": name}), 403) == {
            "detail": "You don't have permission to start tasks."
        }
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, {"task": "Required."}),
        ([], {"": "Must be a JSON object, such as {}."}),
        (GREET | {"colour": "red"}, {"colour": "There is no such field."}),
        (GREET | {"queue": "fast"}, {"queue": "There is no such field."}),
        (GREET | {"task": 5}, {"task": "Must be text."}),
        (GREET | {"task": ""}, {"task": "Must have 1 or more characters."}),
        (GREET | {"task": "x" * 201}, {"task": "Must have 200 or fewer characters."}),
        (GREET | {"params": [1]}, {"params": "Must be a JSON object, such as {}."}),
        (GREET | {"params": {}}, {"params.place": "Required."}),
        (
            GREET | {"params": {"place": {"name": "x", "people": 0}, "when": 1}},
            {
                "params.place.people": "Must be at least 1.",
                "params.when": "There is no such field.",
            },
        ),
        (
            GREET | {"run_after": 5},
            {"run_after": "must be a time such as 2026-11-24T13:00:00Z"},
        ),
        (
            GREET | {"run_after": "5"},
            {"run_after": "must be a time such as 2026-11-24T13:00:00Z"},
        ),
        (
            GREET | {"run_after": "2026-11-24T13:00:00"},
            {"run_after": "Must have a time zone, such as 2026-01-31T14:30Z."},
        ),
        (
            GREET | {"run_after": "9999-12-31T23:59:59-14:00"},
            {"run_after": "must be from the year 1900 to 9998"},
        ),
        (
            GREET | {"unique_key": "a\0b"},
            {"unique_key": "Must match the pattern ^[^\\u0000]*$."},
        ),
    ],
)
def test_invalid_fields_are_reported(client: Client, body: Any, errors: dict[str, str]) -> None:
    assert problem(start(client, body), 422)["errors"].items() >= errors.items()
    assert not Task.objects.exists()


def test_unique_key_in_use_is_a_conflict(ada: User, client: Client) -> None:
    body = GREET | {"unique_key": "import"}
    own = start(client, body).json()["task_id"]
    assert problem(start(client, body), 409) == {
        "detail": "Another task with the same unique key has not finished. Wait for it, or cancel "
        "it.",
        "task": own,
    }


@pytest.mark.parametrize("key", ["import", "k" * 200])
def test_unique_keys_are_separate_per_user(ada: User, client: Client, key: str) -> None:
    """They neither find nor block keys of the site's code or of other users."""
    body = GREET | {"unique_key": key}
    bob = client_of(User.objects.create_superuser("bob"))
    assert start(client, body).status_code == start(bob, body).status_code == 202
    enqueued(unique_key=key)
    assert problem(start(client, body), 409)["task"] == str(Task.objects.get(owner=ada).pk)


# The limit.


def test_user_with_too_many_unfinished_tasks_must_wait(ada: User, client: Client) -> None:
    with override_settings(TASK_API_MAX_UNFINISHED=2):
        saved(Status.COMPLETED, owner=ada)
        saved()
        assert start(client).status_code == 202
        assert start(client).status_code == 202
        response = start(client)
        body = problem(response, 429)
        assert response["Retry-After"] == "10"
        assert body["detail"] == (
            "You have 2 unfinished tasks, which is the maximum. Wait until some finish."
        )
    assert start(client).status_code == 202


def test_limit_none_means_no_limit(ada: User, client: Client) -> None:
    with override_settings(TASK_API_MAX_UNFINISHED=None):
        assert start(client).status_code == 202


def test_limit_holds_for_superusers_too() -> None:
    root = someone(is_superuser=True)
    enqueued(owner=root)
    with override_settings(TASK_API_MAX_UNFINISHED=1):
        problem(start(client_of(root)), 429)


def test_retry_counts_as_a_start(ada: User, client: Client) -> None:
    failed = saved(Status.FAILED, owner=ada, name="tests.api.tasks.Greet")
    theirs = saved(Status.FAILED, owner=someone(), name="tests.api.tasks.Greet")
    enqueued(owner=ada)
    with override_settings(TASK_API_MAX_UNFINISHED=1):
        problem(client.post(f"{API}{failed.pk}/retry"), 429)
        operator = someone("retry_task")
        enqueued(owner=operator)
        # Another user's task counts as that user's, and each task is retried once.
        assert client_of(operator).post(f"{API}{theirs.pk}/retry").status_code == 202


# Idempotency keys.

KEY = {"Idempotency-Key": "order 17"}


def test_same_request_again_returns_the_same_task(client: Client) -> None:
    first, again = start(client, headers=KEY), start(client, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first["Location"] == again["Location"]
    assert "Idempotent-Replayed" not in first
    assert again["Idempotent-Replayed"] == "true"
    assert Task.objects.count() == 1


def test_different_request_with_the_same_key_is_refused(client: Client) -> None:
    first = start(client, headers=KEY).json()["task_id"]
    body = problem(start(client, {"task": "tests.api.tasks.Anything"}, headers=KEY), 422)
    assert body["errors"]["Idempotency-Key"].startswith(
        f"The idempotency key 'order 17' was already used to start task {first}"
    )


def test_keys_are_separate_per_user(client: Client) -> None:
    other = client_of(someone("start_task"))
    assert start(client, headers=KEY).json() != start(other, headers=KEY).json()


def test_replay_is_allowed_at_the_limit(client: Client) -> None:
    start(client, headers=KEY)
    with override_settings(TASK_API_MAX_UNFINISHED=1):
        assert start(client, headers=KEY).status_code == 202
        problem(start(client, headers={"Idempotency-Key": "order 18"}), 429)


@pytest.mark.parametrize("key", ["", "x" * 201, "dés", "a\x7fb"])
def test_invalid_key_is_refused(client: Client, key: str) -> None:
    body = problem(start(client, headers={"Idempotency-Key": key}), 422)
    assert set(body["errors"]) == {"Idempotency-Key"}


@pytest.mark.django_db(transaction=True)
def test_one_of_many_identical_requests_starts_the_task(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)
    enqueue = lifecycle.enqueue

    def wait_and_enqueue(rows: list[Task]) -> None:
        together.wait(PATIENCE)
        enqueue(rows)

    def ask(client: Client) -> Any:
        try:
            return start(client, headers=KEY)
        finally:
            connection.close()

    clients = [client_of(ada) for _ in range(4)]
    monkeypatch.setattr(lifecycle, "enqueue", wait_and_enqueue)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, clients))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer for answer in answers) == 3
    assert Task.objects.count() == 1


def test_delayed_task_is_listed_with_its_time(client: Client) -> None:
    later = timezone.now() + timedelta(hours=1)
    started = start(client, json.dumps(GREET | {"run_after": later.isoformat()})).json()
    info = client.get(f"{API}{started['task_id']}").json()
    assert datetime.fromisoformat(info["run_after"]) == later
