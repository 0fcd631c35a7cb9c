"""Speed on this machine, next to what would be possible: `python -m benchmarks`.

`python -m benchmarks cleanup` prunes a million tasks instead. `python -m benchmarks admin` opens
the admin with as many.

The benchmarks use real worker and web processes with their own database in a temporary folder. Each
figure comes with a yardstick from the same run. Compare these ratios, not the numbers of two
machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: The folder of the run. Child processes get it from the environment.
FOLDER = Path(os.environ.get("BENCHMARKS_FOLDER") or tempfile.mkdtemp(prefix="tasks-benchmarks-"))
os.environ |= {
    "BENCHMARKS_FOLDER": str(FOLDER),
    "DJANGO_SETTINGS_MODULE": "project.settings",
    "DATABASE_URL": f"sqlite:///{FOLDER / 'db.sqlite3'}",
    "DATA_DIR": str(FOLDER),
    "LOG_LEVEL": "WARNING",
}

import django  # noqa: E402 - the settings above must stand before

django.setup()

import httpx  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.test import Client  # noqa: E402
from httpx_sse import aconnect_sse  # noqa: E402

from benchmarks import admin, cleanup  # noqa: E402
from benchmarks.tasks import Noop, Stamp, Ticks  # noqa: E402
from tasks_app import ProgressHandle, task_service  # noqa: E402
from tasks_app.models import Task, Worker  # noqa: E402
from tests.harness import Process, Web, eventually  # noqa: E402

DRAINED = 10_000
STARTED = 200
VIEWERS = 100


def main() -> None:
    call_command("migrate", verbosity=0)
    match sys.argv[1:]:
        case ["cleanup", "--measured"]:
            cleanup.measured(FOLDER)
        case ["cleanup", *tasks]:
            cleanup.main(FOLDER, *map(int, tasks))
        case ["admin", *tasks]:
            admin.main(*map(int, tasks))
        case _:
            calls()
            drain()
            starts()
            viewers()


def calls() -> None:
    handle, number = ProgressHandle(), 500_000

    class Empty:
        def send_progress(self, text: str, value: float) -> None:
            pass

    def best(call: Callable[[str, float], None]) -> float:
        return min(timeit.repeat(lambda: call("x", 0.5), number=number, repeat=3)) / number * 1e6

    ours, empty = best(handle.send_progress), best(Empty().send_progress)
    show("a progress call", f"{ours:.2f} µs", f"an empty call {empty:.2f} µs", ours / empty)


def drain() -> None:
    task_service.start_many(Noop, [{}] * DRAINED)
    with worker("--drain") as process:
        process.wait(600)
    ended = Task.objects.filter(name=Noop.name()).order_by()
    first = ended.earliest("started_at").started_at
    last = ended.latest("finished_at").finished_at
    ours = DRAINED / (last - first).total_seconds()
    show(
        "drain of no-op tasks",
        f"{ours:,.0f}/s",
        f"bare sqlite3 rows {bare():,.0f}/s",
        ours / bare(),
    )


def bare() -> float:
    """Return how many rows per second SQLite inserts in groups of 100.

    It is the upper limit for a worker.
    """
    connection = sqlite3.connect(FOLDER / "bare.sqlite3", isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; DROP TABLE IF EXISTS task;"
        "CREATE TABLE task (id INTEGER PRIMARY KEY, status TEXT, result TEXT)"
    )
    began = time.perf_counter()
    for _ in range(200):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO task VALUES (NULL, 'completed', ?)", [("null",)] * 100)
        connection.execute("COMMIT")
    return 20_000 / (time.perf_counter() - began)


def starts() -> None:
    waits, calls = [], []
    with worker():
        for _ in range(STARTED):
            time.sleep(0.05)  # Let the worker become idle.
            began = time.time()
            started = task_service.start_task(Stamp)
            calls.append((time.time() - began) * 1e3)
            task = eventually(
                lambda task_id=started.task_id: Task.objects.filter(
                    pk=task_id, status="completed"
                ).first()
            )
            waits.append((task.result - began) * 1e3)
    show_spread("start_task(), the call itself", calls)
    show_spread("start_task() to start, on an idle worker", waits)


def viewers() -> None:
    user = User.objects.create_user("viewer")
    client = Client()
    client.force_login(user)
    web = Web(FOLDER / "web.log")
    try:
        with worker():
            cookie = client.cookies["sessionid"].value
            for number in (1, VIEWERS):
                task = task_service.start_task(Ticks, owner=user)
                url = f"{web.url}/tasks/{task.task_id}/stream/"
                show_spread(
                    f"send_progress to the socket of {number} viewers",
                    asyncio.run(watch(url, cookie, number)),
                )
    finally:
        web.end()


async def watch(url: str, cookie: str, number: int) -> list[float]:
    """Return the delay of each progress message to each viewer, in milliseconds."""
    delays: list[float] = []

    async def read(client: httpx.AsyncClient) -> None:
        async with aconnect_sse(client, "GET", url) as source:
            async for event in source.aiter_sse():
                if event.event == "progress_update":
                    sent = float(json.loads(event.data)["data"]["text"] or "nan")
                    delays.append((time.time() - sent) * 1e3)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        cookies={"sessionid": cookie}, timeout=60, limits=limits
    ) as client:
        await asyncio.gather(*(read(client) for _ in range(number)))
    return delays


@contextmanager
def worker(*options: str) -> Iterator[Process]:
    process = Process(["manage.py", "run_tasks", *options], FOLDER / "worker.log")
    try:
        eventually(lambda: Worker.objects.filter(pid=process.pid).exists())
        yield process
    finally:
        process.end()


def show(title: str, ours: str, yardstick: str, ratio: float) -> None:
    print(f"{title:<42} {ours:>14}   {yardstick:<32} x {ratio:.3g}")


def show_spread(title: str, values: Sequence[float]) -> None:
    cuts = statistics.quantiles(values, n=100)
    print(f"{title:<42} p50 {cuts[49]:.2f} ms   p99 {cuts[98]:.2f} ms   of {len(values)}")


if __name__ == "__main__":
    sys.exit(main())
