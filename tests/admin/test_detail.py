"""The admin's page of one task."""

from __future__ import annotations

import html
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import reverse

from tasks_app.admin import detail, history
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Failure, claim_of
from tasks_app.tasks.progress import LogLine
from tests import rows

from .conftest import Login

pytestmark = pytest.mark.django_db

EVIL = "<script>alert(1)</script>"


def url(task: Task) -> str:
    return reverse("admin:tasks_app_task_change", args=[task.pk])


def text(client: Client, task: Task, query: str = "") -> str:
    """Return the text of the page's own part."""
    answer = client.get(url(task) + query)
    assert answer.status_code == 200
    content = answer.content.decode()
    content = content[content.index("data-task-page") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", content)))


def test_history_of_a_task(admin_client: Client) -> None:
    one = rows.worker(hostname="host1", pid=1)
    task, claim = rows.claimed(one, max_attempts=3)
    lifecycle.log({claim: [LogLine("info", "opened the file"), LogLine("warning", "line 3")]})
    lifecycle.retry({claim: Failure("OSError", "disk", "Traceback", timedelta())})
    [task] = lifecycle.claim(rows.worker(hostname="host2", pid=2), 1)
    lifecycle.release([claim_of(task)])
    [task] = lifecycle.claim(one, 1)
    task_service.cancel_task(task.pk, by=User(username="ada"))
    lifecycle.cancel({claim_of(task): False})
    content = text(admin_client, task)
    for part in (
        "Queued",
        "Attempt 1 started on host1:1",
        "Attempt 1 failed",
        "Attempt 2 started on host2:2",
        "Returned to the queue by its worker",
        "Cancel requested , by ada",
        "info opened the file",
        "warning line 3",
    ):
        assert part in content.replace("requested, by", "requested , by"), part
    assert re.search(
        r"Attempts 1 Failed, 0(\.\d)? s host1:1 OSError: disk 2 Returned to the queue", content
    )


def test_log_has_its_role_for_screen_readers(admin_client: Client) -> None:
    content = admin_client.get(url(rows.enqueued())).content.decode()
    assert (
        '<div role="log" aria-labelledby="task-log"><ol class="task-log" data-part="log"' in content
    )


def test_error_and_traceback(admin_client: Client) -> None:
    task = rows.ended(Status.FAILED)
    content = admin_client.get(url(task)).content.decode()
    assert "<b>ValueError</b>: it broke" in content
    assert '<pre id="task-traceback" dir="ltr" tabindex="0">Traceback: it broke</pre>' in content
    assert "<details" in content
    assert 'data-copy="task-traceback"' in content


def test_text_direction_is_isolated(admin_client: Client) -> None:
    task, claim = rows.claimed()
    lifecycle.log({claim: [LogLine("info", "العربية 3")]})
    lifecycle.fail({claim: rows.BROKEN})
    page = admin_client.get(url(task)).content.decode()
    assert '<span dir="auto">العربية 3</span>' in page
    assert re.search(r"<dt>Run time</dt><dd><bdi>[^<]+</bdi>", page)
    listed = admin_client.get(reverse("admin:tasks_app_task_changelist")).content.decode()
    for part in ("text", "remaining", "waited", "ran"):
        assert re.search(rf'<bdi[^>]* data-part="{part}"', listed), part


def test_error_is_shown_once(admin_client: Client) -> None:
    task, claim = rows.claimed(max_attempts=2)
    lifecycle.retry({claim: Failure("OSError", "the first", "", timedelta())})
    waiting = text(admin_client, task)
    assert "Last error OSError: the first" in waiting
    [task] = lifecycle.claim(rows.worker(), 1)
    assert "Last error" not in text(admin_client, task)
    lifecycle.fail({claim_of(task): Failure("ValueError", "the second", "Traceback")})
    content = text(admin_client, task)
    # The bar has the error too, for its script, but does not show it here.
    content = content.replace("Failed ValueError: the second", "Failed")
    assert (
        content.count("the first") == content.count("the second") == waiting.count("the first") == 1
    )
    assert "Error ValueError : the second" in content


def test_every_text_is_escaped(admin_client: Client) -> None:
    user = User.objects.create_user(EVIL)
    task, claim = rows.claimed(
        rows.worker(hostname=EVIL),
        name=EVIL,
        queue=EVIL,
        params={EVIL: EVIL},
        owner=user,
        unique_key=EVIL,
    )
    lifecycle.log({claim: [LogLine("info", EVIL)]})
    lifecycle.fail({claim: Failure(EVIL, EVIL, EVIL)})
    completed, claim = rows.claimed(name="tests.tasks.Noop")
    lifecycle.complete({claim: {EVIL: EVIL}})
    again = rows.saved(name=EVIL, owner=user, retried_from=task)
    for one in (task, completed, again):
        for address in (url(one), reverse("admin:tasks_app_task_delete", args=[one.pk])):
            assert EVIL not in admin_client.get(address).content.decode()


def test_missing_task_redirects_to_the_list(admin_client: Client) -> None:
    for missing in (uuid.uuid4(), "odd"):
        answer = admin_client.get(f"/admin/tasks_app/task/{missing}/change/", follow=True)
        assert answer.redirect_chain == [(reverse("admin:tasks_app_task_changelist"), 302)]
        assert f"There is no task {missing}" in answer.content.decode()


def test_permission_to_view(login: Login) -> None:
    task = rows.enqueued()
    assert login("cancel_task").get(url(task)).status_code == 403
    viewer = login("view_task", username="viewer")
    content = viewer.get(url(task)).content.decode()
    assert "Timeline" in content
    assert "task-act-" not in content
    assert viewer.get(reverse("admin:tasks_app_task_history", args=[task.pk])).status_code == 200


@pytest.mark.parametrize(
    ("status", "offered"),
    [
        (Status.PENDING, ["cancel"]),
        (Status.RUNNING, ["cancel"]),
        (Status.COMPLETED, ["remove"]),
        (Status.FAILED, ["retry", "remove"]),
        (Status.CANCELLED, ["retry", "remove"]),
    ],
)
def test_only_legal_actions_are_offered(
    admin_client: Client, status: Status, offered: list[str]
) -> None:
    task = rows.saved(status)
    content = admin_client.get(url(task)).content.decode()
    assert re.findall(r'class="task-button [\w-]+ task-act-(\w+)"', content) == offered
    if status == Status.RUNNING:
        task_service.cancel_task(task.pk)
        assert "task-act-cancel" not in admin_client.get(url(task)).content.decode()
    if status == Status.FAILED:
        task_service.retry_task(task.pk)
        assert "task-act-retry" not in admin_client.get(url(task)).content.decode()


def test_related_tasks(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    task = rows.saved(Status.FAILED, unique_key="import")
    older = rows.saved(Status.COMPLETED, unique_key="import", age=timedelta(hours=2))
    rows.saved(Status.COMPLETED, unique_key="other")
    again = Task.objects.get(pk=task_service.retry_task(task.pk).task_id)
    content = text(admin_client, task)
    assert f"Retried as {again.pk} Pending" in content
    assert content.count("Same unique key") == 2
    assert str(older.pk) in admin_client.get(url(task)).content.decode()
    assert f"Retried from {task.pk}" in text(admin_client, again)
    monkeypatch.setattr("tasks_app.admin.index_order.WINDOW", 2)
    assert str(older.pk) not in admin_client.get(url(task)).content.decode()


def test_long_history_is_paginated(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LINES", 3)
    monkeypatch.setattr(history, "FACTS", 2)
    task, claim = rows.claimed()
    lifecycle.log({claim: [LogLine("info", f"line {n}") for n in range(7)]})
    lifecycle.cancel({claim: False})

    def lines(query: str) -> list[str]:
        return re.findall(r"line \d", text(admin_client, task, query))

    assert lines("") == ["line 4", "line 5", "line 6"]
    read, query = lines(""), ""
    while earlier := re.search(
        r'href="(\?before=\d+)#', admin_client.get(url(task) + query).content.decode()
    ):
        query = earlier[1]
        read = lines(query) + read
    assert read == [f"line {n}" for n in range(7)]
    assert "Earlier events not shown" in text(admin_client, task)
    assert "data-tail" not in admin_client.get(url(task) + query).content.decode()
    for odd in ("odd", "9" * 19, "9" * 5_000, "-1"):
        assert lines(f"?before={odd}") == ["line 4", "line 5", "line 6"]
    assert lines("?before=" + "9" * 18) == ["line 4", "line 5", "line 6"]


def test_long_value_is_truncated_by_default(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detail, "JSON_SHOWN", 100)
    task, claim = rows.claimed()
    lifecycle.complete({claim: {"text": "x" * 200 + "end"}})
    assert "end" not in text(admin_client, task).split("Details")[0].split("Result")[1][:160]
    # The link is below the truncated value.
    [result, params] = (
        text(admin_client, task).split("Details")[0].split("Result")[1].split("Parameters")
    )
    assert "Show all" in result
    assert "Show all" not in params
    assert "xend" in admin_client.get(url(task) + "?whole").content.decode()


def test_number_of_queries_does_not_depend_on_the_history(admin_client: Client) -> None:
    def queries(task: Task) -> int:
        admin_client.get(url(task))
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(url(task))
        return len(captured)

    short = rows.ended(Status.FAILED)
    task, claim = rows.claimed(max_attempts=50)
    for _ in range(30):
        lifecycle.log({claim: [LogLine("info", "line")] * 10})
        lifecycle.release([claim])
        [task] = lifecycle.claim(rows.worker(), 1)
        claim = claim_of(task)
    lifecycle.fail({claim: rows.BROKEN})
    assert queries(task) == queries(short) <= 12


def test_times_are_in_the_current_zone(admin_client: Client, settings: Any) -> None:
    task = rows.enqueued()
    settings.TIME_ZONE = "Asia/Tokyo"
    event = rows.last_fact(task)
    there = event.timestamp + timedelta(hours=9)
    assert f"{there:%H:%M:%S}" in text(admin_client, task)


def test_bar_is_polled_without_a_stream(admin_client: Client) -> None:
    task = rows.saved(Status.RUNNING)
    assert 'data-refresh="bar"' not in admin_client.get(url(task)).content.decode()
    with override_settings(ROOT_URLCONF="tests.admin.without_streams"):
        page = admin_client.get(url(task)).content.decode()
    assert re.search(r'<div[^>]* data-refresh="bar">.*?<task-progress', page, re.S)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.25, "0.3 s"), (1.04, "1 s"), (7.0, "7 s"), (59.9, "59 s"), (10_800, "3 h 0 min")],
)
def test_run_time_and_timeout(admin_client: Client, seconds: float, expected: str) -> None:
    task, _claim = rows.claimed(timeout_seconds=seconds)
    began = task.events.get(event_type=EventType.STARTED)
    task_service.cancel_task(task.pk)
    lifecycle.cancel({claim_of(task): False})
    ended = began.timestamp + timedelta(seconds=seconds)
    task.events.filter(event_type=EventType.CANCELLED).update(timestamp=ended)
    page = text(admin_client, task)
    assert f"Timeout {expected} " in page
    assert f"Attempts 1 Cancelled, {expected} " in page


@override_settings(TIME_ZONE="Europe/Berlin")
def test_times_have_the_same_format_everywhere(admin_client: Client) -> None:
    winter = datetime(2026, 1, 31, 23, 5, 7, tzinfo=UTC)
    by = rows.worker(started_at=winter, heartbeat_at=winter, stopped_at=winter)
    fields = {"created_at": winter, "run_after": winter, "unique_key": "key"}
    older = rows.saved(Status.FAILED, finished_at=winter, worker=by, **fields)
    task = rows.saved(run_after=winter, created_at=winter, unique_key="key")
    for one in (task, older):
        one.events.create(
            event_type=EventType.QUEUED,
            timestamp=winter,
            data={"run_after": (winter + timedelta(hours=1)).isoformat()},
        )
    for address, times in (
        (url(task), 5),
        (url(older), 5),
        (reverse("admin:tasks_app_task_changelist"), 2),
        (reverse("admin:tasks_app_worker_changelist"), 1),
        (reverse("admin:tasks_app_worker_change", args=[by.pk]), 3),
    ):
        page = admin_client.get(address).content.decode()
        element = (
            '<time datetime="2026-02-01T{0}+01:00" title="2026-02-01 {0} CET">2026-02-01 {0}</time>'
        )
        assert (
            page.count(element.format("00:05:07")) + page.count(element.format("01:05:07")) == times
        )
        assert page.count("<time") == times
        assert "a.m." not in page


def test_attempt_that_never_started_is_not_shown(admin_client: Client) -> None:
    task = rows.ended(Status.COMPLETED)
    never = rows.saved(Status.CANCELLED)
    assert "Attempt 1 of 1" in text(admin_client, task)
    for address in (url(never), reverse("admin:tasks_app_task_changelist")):
        assert "0 of 1" not in admin_client.get(address).content.decode()


def test_running_task_shows_its_run_time_only_in_the_bar(admin_client: Client) -> None:
    # The facts are not updated each second, and would disagree with the bar.
    assert " Run time " not in text(admin_client, rows.saved(Status.RUNNING))
    assert " Run time " in text(admin_client, rows.ended(Status.COMPLETED))
