"""`cleanup_tasks` prunes a million finished tasks while a worker and readers are active.

`python -m benchmarks cleanup`. The important figure is the slowest statement, because all other
writers wait for it. The command runs in its own process, which times each statement and measures
its memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from benchmarks.tasks import Noop
from tasks_app import task_service
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.store import lifecycle, retention
from tasks_app.store.claims import claim_of
from tests.harness import Process, ends, eventually

TASKS = 1_000_000
#: Log lines of one of the tasks.
LOG_LINES = 100_000
#: Age of the youngest task, short enough that the worker's own prune leaves all to the command.
AGE = timedelta(hours=2)
#: The longest that a statement may take, in milliseconds.
AIM_MS = 200


def main(folder: Path, tasks: int = TASKS) -> None:
    began = time.perf_counter()
    make(tasks)
    megabytes = (folder / "db.sqlite3").stat().st_size / 1e6
    print(
        f"{tasks:,} finished tasks, {TaskEvent.objects.count():,} events, {megabytes:,.0f} MB, "
        f"made in {time.perf_counter() - began:.0f} s"
    )
    worker = Process(["manage.py", "run_tasks"], folder / "worker.log")
    prune = None
    try:
        eventually(lambda: Worker.objects.filter(pid=worker.pid).exists())
        spread("a page's reads, nothing beside", [read_page() for _ in range(100)])
        spread("start_task() to its end, nothing beside", [start_one() for _ in range(100)])
        command = ["-m", "benchmarks", "cleanup", "--measured"]
        prune = Process(command, folder / "prune.log")
        pages, starts = Repeated(read_page), Repeated(start_one)
        prune.wait(3600)
        spread("a page's reads, the prune beside", pages.end())
        spread("start_task() to its end, the prune beside", starts.end())
    finally:
        worker.end()
        if prune is not None:
            prune.end()
    assert prune.process.returncode == 0, prune.output
    found = json.loads(prune.output.splitlines()[-1])
    show("the command", f"{found['seconds']:.0f} s", json.dumps(found["summary"]))
    show("slowest statement", f"{found['slowest'] * 1e3:.0f} ms", found["statement"])
    show("most processor time of a statement", f"{found['worked'] * 1e3:.0f} ms", "")
    show("slowest batch, its commit included", f"{found['batch'] * 1e3:.0f} ms", "")
    show("statements", f"{found['statements']:,}", f"of {found['deleted']:,} rows")
    show("memory", f"{found['most']:.0f} MB", f"{found['before']:.0f} MB before")
    show("--dry-run", f"{found['dry_run'] * 1e3:.0f} ms", "")
    for file in folder.glob("db.sqlite3*"):
        file.unlink()  # The file is large.
    if found["slowest"] * 1e3 > AIM_MS:
        sys.exit(f"A statement took longer than {AIM_MS} ms.")


def read_page() -> float:
    """Read the rows of a task list and of one task's page, and return the seconds."""
    began = time.perf_counter()
    tasks = list(Task.objects.all()[:100])
    list(tasks[-1].events.all()[:100])
    return time.perf_counter() - began


def start_one() -> float:
    began = time.perf_counter()
    ends(task_service.start_task(Noop).task_id)
    return time.perf_counter() - began


class Repeated:
    """Repeats a call in its own thread and records the seconds."""

    def __init__(self, do: Callable[[], float]) -> None:
        self._do = do
        self._taken: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> list[float]:
        self._over.set()
        self._thread.join()
        return self._taken

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self._taken.append(self._do())
        connections.close_all()


def make(tasks: int) -> None:
    """Insert finished tasks with random ids and three events each, half a second apart.

    SQL copies one that the lifecycle made, so the rows have all columns of this version.
    """
    started = task_service.start_task(Noop)
    now = timezone.now()
    by = Worker.objects.create(
        hostname="before", pid=1, threads=4, started_at=now, heartbeat_at=now, stopped_at=now
    )
    [model] = lifecycle.claim(by, 1)
    lifecycle.complete({claim_of(model): None})
    quoted = connection.ops.quote_name
    table, events = quoted(Task._meta.db_table), quoted(TaskEvent._meta.db_table)
    columns = [field.column for field in Task._meta.concrete_fields]
    times = ("created_at", "started_at", "finished_at", "run_after")
    moment = "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s, (n * -0.5) || ' seconds')"
    own = {"id": "lower(hex(randomblob(16)))", **dict.fromkeys(times, moment)}
    age = f"-{AGE.total_seconds():.0f} seconds"
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < %s) "
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"{numbers} INSERT INTO {table} ({', '.join(map(quoted, columns))}) "
            f"SELECT {', '.join(own.get(name, 'task.' + quoted(name)) for name in columns)} "
            f"FROM numbers, {table} task WHERE task.id = %s",
            [tasks, *[age] * len(times), started.task_id.hex],
        )
        cursor.execute(
            f"INSERT INTO {events} (task_id, event_type, timestamp, data) "
            f"SELECT task.id, event.event_type, task.finished_at, event.data "
            f"FROM {table} task, {events} event "
            f"WHERE event.task_id = %s AND task.id <> event.task_id "
            f"ORDER BY task.rowid, event.id",
            [started.task_id.hex],
        )
        wordy = Task.objects.order_by("finished_at")[tasks // 2].pk
        cursor.execute(
            f"{numbers} INSERT INTO {events} (task_id, event_type, timestamp, data) "
            f"SELECT %s, 'task_log', 'now', json_object('level', 'info', 'message', 'line ' || n) "
            f"FROM numbers",
            [LOG_LINES, wordy.hex],
        )
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def measured(folder: Path) -> None:
    """Run the command in this process, and print its measurements as the last line."""
    slowest, statement, statements, batch, worked = 0.0, "", 0, 0.0, 0.0

    def watch(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal slowest, statement, statements, worked
        began, before = time.perf_counter(), time.thread_time()
        try:
            return execute(sql, *rest)
        finally:
            took = time.perf_counter() - began
            worked = max(worked, time.thread_time() - before)
            statements += 1
            # BEGIN waits for other writers, so it does not count.
            if took > slowest and not sql.startswith("BEGIN"):
                slowest, statement = took, f"{sql[:30]} … {sql[-30:]}"

    took = retention.Prune._took

    def watch_batch(prune: retention.Prune, seconds: float) -> None:
        nonlocal batch
        batch = max(batch, seconds)
        took(prune, seconds)

    retention.Prune._took = watch_batch  # type: ignore[method-assign]
    options = ["--older-than", "1h", "--json"]
    rows = Task.objects.count() + TaskEvent.objects.count()
    began = time.perf_counter()
    call_command("cleanup_tasks", "--dry-run", *options)
    dry_run = time.perf_counter() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with (folder / "summary.json").open("w") as out, connection.execute_wrapper(watch):
        began = time.perf_counter()
        call_command("cleanup_tasks", *options, stdout=out)
        seconds = time.perf_counter() - began
    measurements = {
        "summary": json.loads((folder / "summary.json").read_text()),
        "seconds": seconds,
        "slowest": slowest,
        "statement": statement,
        "worked": worked,
        "batch": batch,
        "statements": statements,
        "deleted": rows - Task.objects.count() - TaskEvent.objects.count(),
        "dry_run": dry_run,
        "before": before,
        "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(measurements))


def show(title: str, figure: str, beside: str) -> None:
    print(f"{title:<42} {figure:>10}   {beside}", flush=True)


def spread(title: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    show(
        title,
        f"p50 {cuts[49] * 1e3:.1f} ms",
        f"p99 {cuts[98] * 1e3:.1f} ms, most {max(seconds) * 1e3:.0f} ms, of {len(seconds)}",
    )
