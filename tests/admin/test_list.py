"""The admin's list of tasks."""

from __future__ import annotations

import html
import re
import sys
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from project.airports.tasks import ExportAirports
from tasks_app.admin import changelist, index_order
from tasks_app.admin.tasks import TaskAdmin
from tasks_app.models import Task, aware
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Failure
from tasks_app.tasks.progress import LogLine
from tests import rows
from tests.test_query_plans import plan

from .conftest import Login

pytestmark = pytest.mark.django_db

LIST = reverse("admin:tasks_app_task_changelist")
OVERVIEW = reverse("admin:tasks_app_task_overview")
LIVE = reverse("admin:tasks_app_task_live")
EVIL = "<script>alert(1)</script>"


def listed(client: Client, query: str = "") -> list[uuid.UUID]:
    """Return the ids that the list shows, in order."""
    page = client.get(f"{LIST}?{query}")
    assert page.status_code == 200, page.get("Location")
    found = re.findall(r'<template data-task="([^"]+)"', page.content.decode())
    return [uuid.UUID(one) for one in found]


def aged(status: Status = Status.COMPLETED, *, hours: float = 0, **fields: Any) -> Task:
    return rows.saved(status, age=timedelta(hours=hours), **fields)


# Rows.


@pytest.mark.usefixtures("still")
def test_row_shows_everything(admin_client: Client) -> None:
    ada = User.objects.create_user("ada")
    worker = rows.worker(hostname="host7", pid=42)
    now = timezone.now()
    task = rows.saved(
        Status.RUNNING,
        owner=ada,
        queue="imports",
        worker=worker,
        attempt=2,
        max_attempts=3,
        progress=0.5,
        progress_text="Reading",
        run_after=now - timedelta(seconds=150),
        started_at=now - timedelta(seconds=90),
    )
    text = re.sub(r"<[^>]*>", " ", admin_client.get(LIST).content.decode().replace("<wbr>", ""))
    text = re.sub(r"\s+", " ", html.unescape(text))
    for expected in (
        "Noop tests.tasks.Noop",
        "Running",
        "50% Reading about 2 min left",
        "Owner ada Queue imports",
        "Attempt 2 of 3 Worker host7:42",
        "Waited 1 min 0 s Run time 1 min 30 s",
    ):
        assert expected in text
    [cells] = admin_client.get(LIVE, {"_ids": str(task.pk)}).json()["rows"].values()
    assert ">host7:42<" in cells["tried"]
    assert re.findall(r'data-part="(lost|stuck)" hidden>', cells["state"]) == ["lost", "stuck"]


def test_task_waiting_for_a_retry_shows_its_last_error(
    admin_client: Client,
) -> None:
    for number in range(3):
        task, claim = rows.claimed(max_attempts=3)
        lifecycle.log({claim: [LogLine("info", "line")]})
        error = Failure("OSError", f"disk {number} " + "x" * 500, "", timedelta(hours=1))
        lifecycle.retry({claim: error})
        [cells] = admin_client.get(LIVE, {"_ids": str(task.pk)}).json()["rows"].values()
        [error] = re.findall(r'data-part="error" dir="auto">([^<]*)<', cells["task"])
        assert error.startswith(f"OSError: disk {number} x")
        assert len(error) == len("OSError: ") + 200
    page = admin_client.get(LIST).content.decode()
    found = re.findall(r'data-part="error" dir="auto">OSError: disk (\d)', page)
    assert sorted(found) == ["0", "1", "2"]


def test_bar_is_labelled_with_its_task(admin_client: Client) -> None:
    rows.saved(name=ExportAirports.name())
    page = admin_client.get(LIST).content.decode()
    assert re.findall(r'<progress[^>]* aria-label="([^"]*)"', page) == ["Progress: Export airports"]


def test_lost_heartbeat_and_stuck_thread_are_badges(admin_client: Client) -> None:
    began = timezone.now() - timedelta(minutes=1)
    task = rows.saved(Status.RUNNING, started_at=began, progress=0.5)

    def badges() -> list[str]:
        page = admin_client.get(LIST).content.decode()
        return re.findall(r'data-part="(lost|stuck)">', page)

    def left() -> list[str]:
        page = admin_client.get(LIST).content.decode()
        return re.findall(r'data-part="remaining">([^<]*)<', page)

    assert badges() == []
    assert left() != [""]
    rows.lapse(task, timedelta(seconds=1))
    assert badges() == ["lost"]
    # Perhaps no worker runs it, so no remaining time is shown.
    assert left() == [""]
    rows.saved(Status.CANCELLED, stuck=True)
    assert sorted(badges()) == ["lost", "stuck"]


def test_row_of_a_silent_task_says_since_when(admin_client: Client) -> None:
    """Its estimate would grow with each rendering, because it runs longer each time."""
    task, claim = rows.claimed()
    now = timezone.now()
    Task.objects.filter(pk=task.pk).update(started_at=now - timedelta(minutes=3))

    def left(silent: int) -> str:
        then = timezone.now() - timedelta(seconds=silent)
        lifecycle.report({claim: TaskProgressUpdate(text="", value=0.5)}, now=then)
        page = admin_client.get(LIST).content.decode()
        [text] = re.findall(r'data-part="remaining">([^<]*)<', page)
        return str(text)

    assert left(0) == "about 3 min left"
    # The estimate is by the speed up to the report, and falls from then on.
    assert left(20) == "about 2 min left"
    assert left(90).startswith("no progress for 1 min 3")


def test_every_text_is_escaped(admin_client: Client) -> None:
    rows.saved(
        Status.FAILED,
        name=EVIL,
        queue=EVIL,
        progress_text=EVIL,
        error_type=EVIL,
        error_message=EVIL,
        owner=User.objects.create_user(EVIL),
        worker=rows.worker(hostname=EVIL),
    )
    for query in ("", f"?q={EVIL}", f"?owner={EVIL}", f"?name={EVIL}", f"?queue={EVIL}"):
        assert EVIL not in admin_client.get(LIST + query).content.decode()


@pytest.mark.parametrize("query", ["", "status=failed", "queue=default&q=noop", "owner=~nobody"])
def test_number_of_queries_is_constant(admin_client: Client, query: str) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            listed(admin_client, query)
        return len(captured)

    def make(number: int) -> None:
        for one in range(number):
            user = User.objects.create_user(f"user{User.objects.count()}")
            owner = None if "nobody" in query else user
            worker = rows.worker(pid=one)
            rows.saved(Status.FAILED, owner=owner, worker=worker, name=f"gone.{one}")

    make(1)
    listed(admin_client, query)  # Content types are cached from now on.
    of_one = queries()
    make(99)
    assert queries() == of_one <= 9


def test_long_columns_are_not_read(admin_client: Client) -> None:
    rows.saved(Status.FAILED)
    with CaptureQueriesContext(connection) as captured:
        listed(admin_client)
    sql = "\n".join(query["sql"] for query in captured)
    for column in ("params", "result", "error_traceback"):
        assert f'"tasks_app_task"."{column}"' not in sql
    assert "LIMIT 1001" in sql


# Filters and order.


def test_newest_tasks_come_first(admin_client: Client) -> None:
    tasks = [aged(hours=hours) for hours in (1, 3, 2)]
    newest = [tasks[0].pk, tasks[2].pk, tasks[1].pk]
    assert listed(admin_client) == newest
    assert listed(admin_client, "oldest=1") == newest[::-1]


@pytest.mark.parametrize("status", Status)
def test_filter_by_status(admin_client: Client, status: Status) -> None:
    for one in Status:
        rows.saved(one)
    [found] = listed(admin_client, f"status={status}")
    assert Task.objects.get(pk=found).status == status


def test_order_within_a_status(admin_client: Client) -> None:
    now = timezone.now()
    late = rows.saved(Status.PENDING, run_after=now + timedelta(hours=1))
    soon = rows.saved(Status.PENDING, run_after=now - timedelta(hours=1))
    assert listed(admin_client, "status=pending") == [soon.pk, late.pk]
    first = rows.saved(Status.FAILED, finished_at=now - timedelta(minutes=2))
    last = rows.saved(Status.FAILED, finished_at=now)
    assert listed(admin_client, "status=failed") == [last.pk, first.pk]
    assert listed(admin_client, "status=failed&oldest=1") == [first.pk, last.pk]


def test_filters(admin_client: Client, admin_user: User) -> None:
    ada = User.objects.create_user("ada")
    worker = rows.worker()
    plain = aged(hours=30)
    named = aged(name="a.b.C")
    queued = aged(queue="mails")
    owned = aged(owner=ada)
    mine = aged(Status.FAILED, owner=admin_user)
    ran = aged(worker=worker)
    stuck = aged(Status.CANCELLED, stuck=True)
    lost = aged(Status.RUNNING, lease_expires_at=timezone.now() - timedelta(seconds=5))
    old = aged(hours=24 * 8)
    well = aged(Status.RUNNING)
    assert listed(admin_client, "name=a.b.C") == [named.pk]
    assert listed(admin_client, "queue=mails") == [queued.pk]
    assert listed(admin_client, "owner=ada") == [owned.pk]
    assert listed(admin_client, "owner=~me") == [mine.pk]
    assert listed(admin_client, "owner=~me&status=completed") == []
    assert listed(admin_client, "owner=~me&status=failed") == [mine.pk]
    assert {mine.pk, owned.pk}.isdisjoint(listed(admin_client, "owner=~nobody"))
    assert listed(admin_client, "owner=somebody") == []
    assert listed(admin_client, "owner=%00") == []
    assert listed(admin_client, f"worker={worker.pk}") == [ran.pk]
    assert listed(admin_client, "trouble=stuck") == [stuck.pk]
    assert listed(admin_client, "trouble=lost") == [lost.pk]
    assert listed(admin_client, "trouble=lost&status=failed") == []
    assert listed(admin_client, "trouble=lost&owner=ada") == []
    assert listed(admin_client, "trouble=lost&owner=~nobody") == [lost.pk]
    assert listed(admin_client, "status=running&owner=~me") == []
    assert listed(admin_client, "status=running&age=older") == []
    assert listed(admin_client, "age=older") == [old.pk]
    assert {plain.pk, old.pk}.isdisjoint(listed(admin_client, "age=day"))
    assert well.pk in listed(admin_client, "age=hour")
    assert listed(admin_client, "status=completed&age=older") == [old.pk]
    assert listed(admin_client, "status=running&name=a.b.C") == []


@pytest.mark.parametrize(
    "query",
    [
        "status=odd",
        "trouble=odd",
        "age=odd",
        "wait=odd",
        "ended=odd",
        "retried=odd",
        "retried=2026-01-01T00:00:00~odd",
        "worker=odd",
        "from=odd",
        "from=0001-01-01T00:00:00%2B14:00",
        "name=%00",
        "queue=%00",
        "nothing=1",
    ],
)
def test_invalid_query_redirects_to_the_list(admin_client: Client, query: str) -> None:
    page = admin_client.get(f"{LIST}?{query}")
    assert (page.status_code, page["Location"]) == (302, f"{LIST}?e=1")


def test_filter_shows_the_verbose_name(admin_client: Client) -> None:
    """Even if no recent task has that name, because the class is known."""
    page = admin_client.get(f"{LIST}?name={ExportAirports.name()}")
    assert re.search(r">\s*Export airports\s*<", page.content.decode())


def test_filter_does_not_import_a_name_from_the_url(
    admin_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script_of_somebody.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    for url in (LIST, LIVE):
        page = admin_client.get(f"{url}?name=script_of_somebody.Task")
        assert page.status_code == 200
    page = admin_client.get(f"{LIST}?name=this.s")
    assert ">this.s<" in re.sub(r"\s", "", page.content.decode().replace("<wbr>", ""))
    assert {"script_of_somebody", "this"}.isdisjoint(sys.modules)


def test_search(admin_client: Client) -> None:
    box = re.search(
        r'<input type="search" class="task-input"[^>]*>', admin_client.get(LIST).content.decode()
    )
    assert box
    assert box[0].count('="Search by ID, user, task name or error"') == 2
    assert ' aria-label="' in box[0]
    ada = User.objects.create_user("ada")
    failed = rows.saved(Status.FAILED, error_message="disk is full", error_type="OSError")
    owned = rows.saved(Status.COMPLETED, owner=ada, name="shop.tasks.Export")
    assert listed(admin_client, "q=FULL") == [failed.pk]
    assert listed(admin_client, "q=oserror") == [failed.pk]
    assert listed(admin_client, "q=ada") == [owned.pk]
    assert listed(admin_client, "q=shop.tasks") == [owned.pk]
    assert listed(admin_client, f"q={owned.pk}") == [owned.pk]
    assert listed(admin_client, f"q=+{owned.pk.hex}+") == [owned.pk]
    assert listed(admin_client, f"q={owned.pk}&status=failed") == []
    assert listed(admin_client, f"q={uuid.uuid4()}") == []
    assert listed(admin_client, "q=100%25") == []


def test_search_by_id_prefix(admin_client: Client) -> None:
    first = rows.saved(pk=uuid.UUID("beefcafe-0000-4000-8000-000000000001"))
    second = rows.saved(Status.FAILED, pk=uuid.UUID("beefcafe-0001-4000-8000-000000000002"))
    named = rows.saved(name="shop.beefcafe00ff")
    assert listed(admin_client, "q=BEEFCAFE") == [first.pk, second.pk]
    assert listed(admin_client, "q=beefcafe-00") == [first.pk, second.pk]
    assert listed(admin_client, "q=beefcafe-0001-4") == [second.pk]
    assert listed(admin_client, "q=beefcafe&status=failed") == [second.pk]
    page = admin_client.get(f"{LIST}?q=beefca").content.decode()
    assert "ID prefix: <bdi>beefca</bdi>" in page
    # If no ID starts with it, it is a word.
    assert listed(admin_client, "q=beefcafe00ff") == [named.pk]
    assert "ID prefix" not in admin_client.get(f"{LIST}?q=beefcafe00ff").content.decode()
    assert listed(admin_client, "q=beef") == [named.pk]


def test_search_by_verbose_name(admin_client: Client) -> None:
    export = rows.saved(name=ExportAirports.name())
    rows.saved()
    assert listed(admin_client, "q=export+AIRPORTS") == [export.pk]
    assert listed(admin_client, "q=export+trains") == []


# Many tasks.


def test_counts_and_page_numbers_are_limited(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changelist, "COUNTED", 200)
    Task.objects.bulk_create(
        rows.row(Status.COMPLETED, age=timedelta(seconds=n)) for n in range(450)
    )
    page = admin_client.get(LIST)
    assert "More than 200 tasks" in page.content.decode()
    assert "Older tasks" not in page.content.decode()
    seen, query = listed(admin_client), "p=2"
    seen += listed(admin_client, query)
    beyond = admin_client.get(f"{LIST}?{query}").context["cl"].beyond_url
    while beyond:
        # The task that a link names is shown on both sides of it, so none is left out.
        part = listed(admin_client, beyond[1:])
        assert part[0] == seen[-1]
        seen += part[1:] + listed(admin_client, f"{beyond[1:]}&p=2")
        beyond = admin_client.get(f"{LIST}{beyond}&p=2").context["cl"].beyond_url
    newest = Task.objects.order_by("-created_at").values_list("pk", flat=True)
    assert seen[:400] == list(newest[:400])
    later = {"from": Task.objects.get(pk=seen[-1]).created_at.isoformat()}
    assert "You are further down the list" in admin_client.get(LIST, later).content.decode()


def test_filter_searches_a_window_and_offers_the_next(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_order, "WINDOW", 10)
    tasks = [aged(hours=n, name="rare" if n in (3, 25) else "common") for n in range(30)]
    assert listed(admin_client, "name=rare") == [tasks[3].pk]
    found = []
    url = "?name=rare"
    for _ in range(3):
        page = admin_client.get(LIST + url)
        found += listed(admin_client, url[1:])
        url = page.context["cl"].window_url
        assert ("Search older tasks" in page.content.decode()) is bool(url)
    assert found == [tasks[3].pk, tasks[25].pk]
    assert url == ""
    # Filters that an index answers need no window.
    assert len(listed(admin_client, "status=completed")) == 30
    assert len(listed(admin_client, "age=day")) == 24
    assert listed(admin_client, f"q={tasks[29].pk}") == [tasks[29].pk]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("", "tasks_newest"),
        ("oldest=1", "tasks_newest"),
        ("name=x", "tasks_newest"),
        ("queue=x", "tasks_newest"),
        (f"worker={uuid.UUID(int=7)}", "tasks_newest"),
        ("trouble=stuck", "tasks_stuck"),
        ("trouble=stuck&status=failed&owner=~me&age=day", "tasks_stuck"),
        ("age=day", "tasks_newest"),
        ("q=x", "tasks_newest"),
        ("owner=~nobody", "tasks_newest_of_owner"),
        ("owner=~me&status=failed", "tasks_newest_of_owner"),
        ("status=pending", "tasks_due"),
        ("status=pending&queue=x", "tasks_due"),
        ("status=running", "tasks_leased"),
        ("status=running&owner=~me", "tasks_leased"),
        ("trouble=lost", "tasks_leased"),
        ("age=older", "tasks_newest"),
        ("status=failed", "tasks_finished"),
        ("status=completed&name=x&q=y", "tasks_finished"),
        ("status=pending&wait=scheduled&queue=x", "tasks_due"),
        ("wait=ready", "tasks_due"),
        ("wait=ready&owner=~me", "tasks_newest_of_owner"),
        ("status=failed&ended=day&name=x", "tasks_finished"),
        ("ended=hour", "tasks_newest"),
        ("retried=2026-01-01T00:00:00~2026-01-01T00:00:20", "tasks_newest"),
    ],
)
def test_list_reads_an_index_in_its_order(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, query: str, index: str
) -> None:
    monkeypatch.setattr(index_order, "WINDOW", 1)
    for status in Status:
        for _ in range(3):
            rows.saved(status)
    read: list[tuple[str, Any]] = []

    def collect(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("SELECT") and '"tasks_app_task"' in sql:
            read.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(collect):
        listed(admin_client, query)
    assert len(read) >= 3
    # The choices of names and queues are always taken from the newest tasks.
    choices = [sql for sql, _params in read if "LIMIT 2000" in sql]
    assert len(choices) == 1
    for sql, params in read:
        indexes, whole = plan(sql, params)
        assert not whole, sql
        if connection.vendor == "sqlite":
            # PostgreSQL plans by the tables' contents, and these are nearly empty.
            assert ("tasks_newest" if sql in choices else index) in indexes, sql


# Live updates.


def test_script_gets_rows_and_the_top_of_the_list(admin_client: Client) -> None:
    failed, pending = rows.saved(Status.FAILED), rows.saved()
    asked = {"_ids": f"{failed.pk},{uuid.uuid4()}", "_new": "1", "status": "pending"}
    answer = admin_client.get(LIVE, asked).json()
    assert list(answer["rows"]) == [str(failed.pk)]
    assert ">ValueError: it broke<" in answer["rows"][str(failed.pk)]["task"]
    assert answer["top"] == [str(pending.pk)]
    assert admin_client.get(LIVE, {"_ids": str(failed.pk)}).json()["top"] is None


def test_script_may_send_ids_in_parts(admin_client: Client) -> None:
    one, other = rows.saved(), rows.saved()
    answer = admin_client.get(LIVE, {"_ids": ["", str(one.pk), "", str(other.pk)]})
    assert set(answer.json()["rows"]) == {str(one.pk), str(other.pk)}


def announced_ids(client: Client, page: Any) -> set[str]:
    """Return the ids that a page's script would announce as new."""
    [query] = re.findall(r'data-query="([^"]*)"', page.content.decode())
    known = re.findall(r'<template data-task="([^"]+)"', page.content.decode())
    asked = dict(parse_qsl(html.unescape(query).removeprefix("?")))
    answer = client.get(LIVE, asked | {"_new": "1"})
    return set(answer.json()["top"]) - set(known)


@pytest.mark.parametrize(
    "query", ["", "status=pending", "oldest=1", "status=pending&queue=default", "q=noop"]
)
def test_new_tasks_are_those_created_since(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(TaskAdmin, "list_per_page", 3)
    for minutes in range(5):
        rows.saved(age=timedelta(minutes=1 + minutes))
    page = admin_client.get(f"{LIST}?{query}")
    [first, *_] = listed(admin_client, query)
    assert announced_ids(admin_client, page) == set()
    Task.objects.get(pk=first).delete()
    assert announced_ids(admin_client, page) == set()
    new = rows.saved()
    assert {str(new.pk)} == announced_ids(admin_client, page)


def test_new_tasks_in_a_list_of_finished_ones_are_those_finished_since(
    admin_client: Client,
) -> None:
    rows.saved(Status.FAILED, age=timedelta(hours=1))
    page = admin_client.get(f"{LIST}?status=failed")
    last = rows.saved(Status.FAILED, created_at=timezone.now() - timedelta(days=1))
    rows.saved(Status.FAILED, age=timedelta(hours=2))
    assert announced_ids(admin_client, page) == {str(last.pk)}


@pytest.mark.parametrize("query", ["", "status=pending"])
def test_all_tasks_are_new_to_an_empty_list(admin_client: Client, query: str) -> None:
    page = admin_client.get(f"{LIST}?{query}")
    task = rows.saved(age=timedelta(minutes=1))
    assert announced_ids(admin_client, page) == {str(task.pk)}


@pytest.mark.parametrize(
    "query", [{"_ids": "odd"}, {"_ids": ["", "odd"]}, {"_new": "1", "status": "odd"}]
)
def test_script_gets_400_for_an_invalid_query(admin_client: Client, query: dict[str, Any]) -> None:
    assert admin_client.get(LIVE, query).status_code == 400


def test_live_updates_need_the_permission_to_view(login: Login) -> None:
    assert login("cancel_task").get(LIVE).status_code == 403
    assert login("view_task", username="viewer").get(LIVE).status_code == 200


@pytest.mark.parametrize("status", Status)
def test_live_update_has_the_cells_of_the_page(admin_client: Client, status: Status) -> None:
    task = rows.saved(status, progress=0.25, age=timedelta(hours=2, minutes=5, seconds=20))
    page = admin_client.get(LIST).content.decode()
    [cells] = admin_client.get(LIVE, {"_ids": str(task.pk)}).json()["rows"].values()
    assert list(cells) == list(TaskAdmin.list_display)
    for column, cell in cells.items():
        assert cell in page, column


def test_queries_of_a_live_update_are_constant(admin_client: Client) -> None:
    tasks = [rows.saved(status) for status in Status]

    def queries(*ids: object) -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIVE, {"_ids": ",".join(map(str, ids))})
        return len(captured)

    assert queries(*[task.pk for task in tasks]) == queries(tasks[0].pk) <= 6


@pytest.mark.parametrize("use_tz", [True, False])
def test_time_of_the_page_is_the_databases(
    admin_client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch, use_tz: bool
) -> None:
    """It has a zone, because a browser would read it in its own zone otherwise."""
    settings.USE_TZ = use_tz
    there = timezone.now() - timedelta(hours=5)
    monkeypatch.setattr(changelist, "database_now", lambda _using: there)
    page = admin_client.get(LIST).content.decode()
    [now] = re.findall(r'data-now="([^"]+)"', page)
    assert datetime.fromisoformat(now) == aware(there)
    assert datetime.fromisoformat(now).tzinfo is not None


@pytest.mark.urls("tests.admin.without_streams")
def test_list_without_task_urls_is_polled(admin_client: Client) -> None:
    rows.saved()
    page = admin_client.get("/admin/tasks_app/task/").content.decode()
    assert 'data-stream-url=""' in page


@pytest.mark.parametrize(
    ("url", "first"), [(LIST, "task_status"), (OVERVIEW, "task_queued")], ids=["list", "overview"]
)
def test_pages_stream_under_asgi_and_poll_under_wsgi(
    admin_client: Client, admin_user: User, url: str, first: str
) -> None:
    """Under WSGI each attempt would be a 501, and a line in the terminal."""
    client = AsyncClient()
    client.force_login(admin_user)
    streamed = async_to_sync(client.get)(url).content.decode()
    assert f'data-stream-url="/tasks/stream/?all=1&amp;events={first},' in streamed
    assert "task_log" not in streamed
    assert 'data-stream-url=""' in admin_client.get(url).content.decode()
