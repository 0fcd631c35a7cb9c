"""Lists of tasks and of their events, page by page."""

from __future__ import annotations

import base64
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tasks_app.api import paging
from tasks_app.models import Task
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.tasks.progress import LogLine
from tests.api.asking import API, client_of, problem, someone
from tests.rows import claimed, enqueued, row, saved

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return someone()


@pytest.fixture
def client(ada: User) -> Client:
    return client_of(ada)


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [task["task_id"] for task in response.json()["tasks"]]


def aged(minutes: int, **fields: Any) -> Task:
    return saved(age=timedelta(minutes=minutes), **fields)


def test_own_tasks_are_listed_newest_first(ada: User, client: Client) -> None:
    mine = [aged(minutes, owner=ada) for minutes in (3, 1, 2)]
    saved()
    saved(owner=someone())
    expected = [str(task.pk) for task in (mine[1], mine[2], mine[0])]
    response = client.get(API)
    assert ids(response) == expected
    assert response.json()["next"] is None


def test_listed_task_is_its_info_without_the_result(ada: User, client: Client) -> None:
    task = saved(Status.COMPLETED, owner=ada, result={"rows": 3})
    failed = aged(1, status=Status.FAILED, owner=ada, retried_from=task)
    [first, second] = client.get(API).json()["tasks"]
    full = client.get(f"{API}{task.pk}").json()
    assert full.pop("result") == {"rows": 3}
    assert first == full
    assert second["error"] == {"type": None, "message": "The task failed."}
    assert second["retried_from"] == str(task.pk)
    assert second["task_id"] == str(failed.pk)


def test_viewer_of_all_sees_all_or_only_own() -> None:
    viewer = someone("view_task")
    mine, other = saved(owner=viewer), aged(1)
    client = client_of(viewer)
    assert ids(client.get(API)) == [str(mine.pk), str(other.pk)]
    assert ids(client.get(API, {"owner": "me"})) == [str(mine.pk)]


def test_filters(ada: User, client: Client) -> None:
    now = timezone.now()
    old = aged(60, owner=ada, queue="mail", name="shop.tasks.Send")
    failed = aged(30, status=Status.FAILED, owner=ada)
    new = aged(0, status=Status.RUNNING, owner=ada)
    for query, expected in [
        ({"status": "failed"}, [failed]),
        ({"status": ["failed", "running"]}, [new, failed]),
        ({"name": "shop.tasks.Send"}, [old]),
        ({"queue": "mail"}, [old]),
        ({"queue": "default", "status": "failed"}, [failed]),
        ({"created_after": (now - timedelta(minutes=45)).isoformat()}, [new, failed]),
        ({"created_before": (now - timedelta(minutes=45)).isoformat()}, [old]),
        ({"created_after": old.created_at.isoformat()}, [new, failed, old]),
        ({"created_before": old.created_at.isoformat()}, []),
        ({"name": "Send"}, []),
    ]:
        assert ids(client.get(API, query)) == [str(task.pk) for task in expected], query


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ({"stauts": "failed"}, {"stauts"}),
        ({"status": "done"}, {"status.0"}),
        ({"name": "x" * 201}, {"name"}),
        ({"name": ""}, {"name"}),
        ({"name": "a\0b"}, {"name"}),
        ({"queue": "\0"}, {"queue"}),
        ({"owner": "ada"}, {"owner"}),
        ({"limit": "0"}, {"limit"}),
        ({"limit": "101"}, {"limit"}),
        ({"limit": "many"}, {"limit"}),
        ({"limit": "1" * 5000}, {"limit"}),
        ({"created_after": "yesterday"}, {"created_after"}),
        ({"created_after": "1700000000"}, {"created_after"}),
        ({"created_after": "2026-01-01T00:00:00"}, {"created_after"}),
        ({"created_before": "0001-01-01T00:00:00+14:00"}, {"created_before"}),
        ({"cursor": "x"}, {"cursor"}),
        ({"cursor": "é"}, {"cursor"}),
        ({"cursor": "x" * 201}, {"cursor"}),
        ({"cursor": base64.urlsafe_b64encode(b"2026-01-01 \xff").decode()}, {"cursor"}),
        ({"cursor": base64.urlsafe_b64encode(b"2026-01-01T00:00:00Z 7").decode()}, {"cursor"}),
        ({"limit": "0", "owner": "x"}, {"limit", "owner"}),
    ],
)
def test_invalid_filters_are_reported_by_field(
    client: Client, query: Any, errors: set[str]
) -> None:
    assert set(problem(client.get(API, query), 422)["errors"]) == errors


def test_unknown_parameter_error_lists_the_parameters(client: Client) -> None:
    body = problem(client.get(API, {"page": "2"}), 422)
    assert body["errors"] == {
        "page": "unknown parameter; use created_after, created_before, cursor, "
        "limit, name, owner, queue, status"
    }


@pytest.mark.parametrize("together", [True, False])
def test_pages_have_no_gaps_or_repetitions(ada: User, client: Client, together: bool) -> None:
    """Even if many tasks have the same creation time, and while new ones are created."""
    now = timezone.now()
    for number in range(7):
        saved(owner=ada, created_at=now - timedelta(seconds=0 if together else number))
    expected = {str(pk) for pk in Task.objects.values_list("pk", flat=True)}
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        response = client.get(
            API, {"limit": 2, "owner": "me"} | ({"cursor": cursor} if cursor else {})
        )
        seen += ids(response)
        cursor = response.json()["next"]
        saved(owner=ada, created_at=now + timedelta(hours=1))
        if cursor is None:
            break
    assert cursor is None
    assert len(seen) == 7
    assert set(seen) == expected


def walk(client: Client, **query: Any) -> list[list[str]]:
    """Return the ids of each page, from the first to the last."""
    pages = []
    cursor: dict[str, str] = {}
    while True:
        response = client.get(API, query | cursor)
        pages.append(ids(response))
        if response.json()["next"] is None:
            return pages
        cursor = {"cursor": response.json()["next"]}


FILTERS = [{"status": "failed"}, {"name": "shop.tasks.Rare"}, {"queue": "rare"}]


@pytest.fixture(params=["aware", "naive"])
def site(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.USE_TZ = request.param == "aware"
    settings.TIME_ZONE = "Europe/Berlin"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("query", FILTERS)
@pytest.mark.parametrize("window", [1, 3, 21, 22])
@pytest.mark.parametrize("together", [1, 4, 21], ids=lambda many: f"{many} at a moment")
def test_rare_tasks_are_searched_window_by_window(
    ada: User,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, str],
    window: int,
    together: int,
) -> None:
    """Each matching task comes once, in the order of the whole list."""
    monkeypatch.setattr(paging, "WINDOW", window)
    now = timezone.now()
    for number in range(21):
        rare = number in (0, 1, 2, 9, 20)
        task = row(
            Status.FAILED if rare else Status.COMPLETED,
            owner=ada,
            name="shop.tasks.Rare" if rare else "shop.tasks.Usual",
            queue="rare" if rare else "usual",
        )
        task.created_at = now - timedelta(minutes=number // together)
        task.save(force_insert=True)
    saved(Status.FAILED, name="shop.tasks.Rare", queue="rare", owner=someone())
    order = Task.objects.filter(owner=ada).order_by("-created_at", "-pk")
    expected = [str(pk) for pk in order.filter(queue="rare").values_list("pk", flat=True)]
    pages = walk(client, limit=2, **query)
    assert [pk for page in pages for pk in page] == expected
    assert max(map(len, pages)) <= 2
    if window == 1:
        assert len(pages) == 21


@pytest.mark.parametrize("query", [{}, {"owner": "me"}, {"created_after": "2020-01-01T00:00:00Z"}])
def test_indexed_filter_needs_no_window(
    ada: User, client: Client, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    monkeypatch.setattr(paging, "WINDOW", 1)
    for _ in range(3):
        saved(owner=ada)
    assert [len(page) for page in walk(client, limit=3, **query)] == [3]


@pytest.mark.parametrize("window", [2, 1000])
def test_window_costs_one_more_query(
    ada: User, client: Client, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(paging, "WINDOW", window)
    for _ in range(5):
        saved(owner=ada)
    with CaptureQueriesContext(connection) as whole:
        client.get(API)
    with CaptureQueriesContext(connection) as sifted:
        client.get(API, {"status": "failed", "queue": "x"})
    assert len(sifted) == len(whole) + 1


def test_number_of_queries_is_constant(ada: User, client: Client) -> None:
    def cost() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(API, {"limit": 100})
        assert not any("error_traceback" in query["sql"] for query in queries)
        return len(queries)

    saved(owner=ada)
    few = cost()
    for _ in range(20):
        saved(Status.COMPLETED, owner=ada, result="x")
    assert cost() == few
    assert few <= 5  # session, user, two for permissions, tasks


# Events.


def events_of(task: Task | uuid.UUID) -> str:
    return f"{API}{getattr(task, 'pk', task)}/events"


def test_history_is_in_order(ada: User, client: Client) -> None:
    task, claim = claimed(owner=ada)
    lifecycle.log({claim: [LogLine("info", "on the way")]})
    body = client.get(events_of(task)).json()
    assert [event["event_type"] for event in body["events"]] == [
        "task_queued",
        "task_started",
        "task_log",
    ]
    last = body["events"][-1]
    assert last.pop("timestamp")
    assert last == {
        "id": task.events.last().pk,
        "event_type": "task_log",
        "task_id": str(task.pk),
        "data": {"level": "info", "message": "on the way"},
    }
    assert body["next"] is None


def test_history_is_paginated(ada: User, client: Client) -> None:
    task, claim = claimed(owner=ada)
    enqueued(owner=ada)
    lifecycle.log({claim: [LogLine("info", str(number)) for number in range(5)]})
    seen: list[int] = []
    after = 0
    while after is not None:
        page = client.get(events_of(task), {"after": after, "limit": 3}).json()
        seen += [event["id"] for event in page["events"]]
        after = page["next"]
    assert seen == list(task.events.values_list("pk", flat=True))
    assert client.get(events_of(task), {"after": seen[-1]}).json() == {"events": [], "next": None}


@pytest.mark.parametrize(
    "query",
    [{"after": "-1"}, {"after": str(2**63)}, {"after": "x"}, {"limit": "0"}, {"since": "1"}],
)
def test_invalid_event_parameters_are_reported(ada: User, client: Client, query: Any) -> None:
    task = saved(owner=ada)
    assert set(problem(client.get(events_of(task), query), 422)["errors"]) == set(query)


def test_other_users_history_is_not_found(client: Client) -> None:
    for task in (saved(), uuid.uuid4()):
        assert problem(client.get(events_of(task)), 404) == {
            "detail": "Task not found, or you don't have permission to view it."
        }
