"""The admin's list with a million tasks: `python -m benchmarks admin`, or with another number.

The lists of the API are measured too. Django's test client opens each page, template included, as
an operator's browser would. The figure is the median of five requests, after one to warm up. The
aim is 300 ms. The database runs in the same process, so the processor time is what the page takes
on an idle machine.
"""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, setup_test_environment
from django.urls import reverse
from django.utils import timezone

from tasks_app import EventType, Status
from tasks_app.models import Task, TaskEvent, Worker

TASKS = 1_000_000
AIM_MS = 300
TIMES = 5

NAMES = [f"shop.tasks.{name}" for name in ("ImportOrders", "SendMails", "Export", "Resize")]
QUEUES = ["default", "mails", "imports"]
RARE = "shop.tasks.YearlyReport"


def main(tasks: int = TASKS) -> None:
    setup_test_environment()
    began = time.perf_counter()
    if not Task.objects.exists():
        make(tasks)
        print(f"{tasks:,} tasks made in {time.perf_counter() - began:.0f} s")
    client = Client()
    client.force_login(User.objects.get(username="root"))
    page = reverse("admin:tasks_app_task_changelist")
    for title, query in pages():
        measure(client, title, f"{page}?{query}")
    beyond = client.get(page, {"p": "10"}).context["cl"].beyond_url
    measure(client, "past the numbered pages", page + beyond)
    url = page + "?q=nothing+like+this"
    for steps in range(3):
        measure(client, f"a search without results, window {steps + 1}", url)
        url = page + client.get(url).context["cl"].window_url
    ids = list(Task.objects.order_by("-created_at").values_list("pk", flat=True)[:100])
    live = reverse("admin:tasks_app_task_live")
    measure(client, "the list's live update", f"{live}?_new=1&_ids={','.join(map(str, ids))}")
    measure(client, "the overview", reverse("admin:tasks_app_task_overview"))
    measure(client, "the overview's live update", reverse("admin:tasks_app_task_overview_part"))
    failed = Task.objects.filter(status=Status.FAILED).order_by("-finished_at")[1000]
    measure(client, "a task's page", reverse("admin:tasks_app_task_change", args=[failed.pk]))
    keyed = Task.objects.filter(unique_key__isnull=False, status=Status.FAILED).first()
    if keyed:
        url = reverse("admin:tasks_app_task_change", args=[keyed.pk])
        measure(client, "the page of a task with a unique key", url)
    for title, query in lists():
        measure(client, f"the API: {title}", f"{reverse('tasks_app_api:task_list')}?{query}")


def pages() -> Iterator[tuple[str, str]]:
    middle = Task.objects.order_by("-created_at").values_list("created_at", flat=True)
    far = middle[Task.objects.count() * 9 // 10].isoformat().replace("+", "%2B")
    worker = Worker.objects.order_by("-heartbeat_at").first()
    assert worker
    yield "the list", ""
    yield "page 10", "p=10"
    yield "90 % down the list", f"from={far}"
    yield "the oldest first", "oldest=1"
    for status in Status:
        yield f"status {status}", f"status={status}"
        yield f"status {status}, the other end", f"status={status}&oldest=1"
    yield "heartbeat lost", "trouble=lost"
    yield "stuck", "trouble=stuck"
    yield "a common name", f"name={NAMES[0]}"
    yield "a rare name", f"name={RARE}"
    yield "a queue", "queue=mails"
    yield "an owner of half the tasks", "owner=ada"
    yield "an owner of few tasks", "owner=eve"
    yield "no owner", "owner=~nobody"
    yield "a worker", f"worker={worker.pk}"
    yield "past hour", "age=hour"
    yield "older than a week", "age=older"
    yield "failed, with a rare name", f"status=failed&name={RARE}"
    yield "completed, with a rare name", f"status=completed&name={RARE}"
    yield "failed tasks of an owner in a queue", "owner=ada&status=failed&queue=mails"
    yield "search by id", f"q={Task.objects.order_by('created_at')[5].pk}"
    yield "search by owner", "q=eve"
    yield "search by name", "q=importorders"
    yield "search by error", "q=deadline"
    yield "failed, search by error", "q=deadline&status=failed"


def lists() -> Iterator[tuple[str, str]]:
    yield "the list", "limit=100"
    for status in Status:
        yield f"status {status}", f"status={status}"
    yield "a common name", f"name={NAMES[0]}"
    yield "a rare name", f"name={RARE}"
    yield "an unused name", "name=none"
    yield "an unused queue", "queue=none"
    yield "own tasks", "owner=me"
    yield "own failed tasks", "owner=me&status=failed"
    yield "created in the future", "created_after=2999-01-01T00:00:00Z"
    yield "created before any task", "created_before=1999-01-01T00:00:00Z"


def measure(client: Client, title: str, url: str) -> None:
    client.get(url)
    took, worked = [], []
    for _ in range(TIMES):
        began, busy = time.perf_counter(), time.process_time()
        response = client.get(url)
        took.append((time.perf_counter() - began) * 1e3)
        worked.append((time.process_time() - busy) * 1e3)
        assert response.status_code == 200, (url, response.status_code, response.get("Location"))
    with CaptureQueriesContext(connection) as queries:
        client.get(url)
    slowest = max(queries.captured_queries, key=lambda query: float(query["time"]))
    median = statistics.median(took)
    mark = "" if median < AIM_MS else f"   over {AIM_MS} ms"
    print(
        f"{title:<36} {median:6.0f} ms, of the processor {statistics.median(worked):.0f}; "
        f"{len(queries):>2} queries, slowest {float(slowest['time']) * 1e3:.0f} ms{mark}"
    )


def make(tasks: int) -> None:
    """Create the tasks of four weeks: most completed, 2 % failed, and 5 % pending."""
    chance = random.Random(1)
    root = User.objects.create_superuser("root")
    owners: list[User | None] = [User.objects.create_user("ada"), None, root]
    few = User.objects.create_user("eve")
    now = timezone.now()
    workers = Worker.objects.bulk_create(
        Worker(hostname=f"host{n}", pid=n + 1, threads=4, started_at=now, heartbeat_at=now)
        for n in range(8)
    )
    step = timedelta(days=28) / tasks
    rows: list[Task] = []
    for number in range(tasks):
        at = now - step * (tasks - number)
        owner = chance.choices(owners, [5, 2, 3])[0] if number % 5000 else few
        rows.append(row(chance, number, at, now, owner, chance.choice(workers), tasks))
        if len(rows) == 5_000:
            store(rows)
            rows = []
    store(rows)


def row(
    chance: random.Random,
    number: int,
    at: datetime,
    now: datetime,
    owner: User | None,
    worker: Worker,
    tasks: int,
) -> Task:
    left = tasks - number
    status = chance.choices([Status.COMPLETED, Status.FAILED, Status.CANCELLED], [970, 20, 10])[0]
    if left <= 40:
        status = Status.RUNNING
    elif left <= tasks // 20:
        status = Status.PENDING
    fields: dict[str, Any] = {}
    if status is not Status.PENDING:
        fields |= {"attempt": 1, "worker": worker, "started_at": at + timedelta(seconds=1)}
    if status is Status.RUNNING:
        lease = now + timedelta(hours=1 if number % 4 else -1)
        fields |= {"fencing_token": uuid.uuid4(), "lease_expires_at": lease, "progress": 0.4}
    if status.is_terminal:
        fields |= {"finished_at": at + timedelta(seconds=chance.uniform(2, 600))}
    if status is Status.FAILED:
        fields |= {
            "error_type": "TimeoutError" if number % 7 else "Deadline",
            "error_message": f"order {number} could not be read",
            "error_traceback": "Traceback\n" * 40,
        }
    return Task(
        name=RARE if number % 50_000 == 7 else chance.choice(NAMES),
        params={"order": number, "note": "x" * 200},
        owner=owner,
        queue=chance.choice(QUEUES),
        created_at=at,
        run_after=at,
        status=status,
        stuck=status.is_terminal and number % 20_000 == 1,
        unique_key=f"key {number}" if number % 100 == 0 else None,
        progress_text="Reading order 17 of 40",
        **fields,
    )


def store(rows: list[Task]) -> None:
    Task.objects.bulk_create(rows)
    TaskEvent.objects.bulk_create(
        TaskEvent(
            task=task,
            event_type=EventType.QUEUED,
            timestamp=task.created_at,
            data={},
        )
        for task in rows
    )
