"""A command that waits for a task, and its output while it waits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections

from tasks_app.management import waiting
from tasks_app.models import Task
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import claim_of
from tests.rows import enqueued, saved, worker

pytestmark = pytest.mark.django_db(transaction=True)


def test_polls_at_most_once_per_interval_however_many_commits() -> None:
    task = enqueued()
    [taken] = lifecycle.claim(worker(), 1)
    looks = 0
    waits = threading.Event()

    def count(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal looks
        looks += 'FROM "tasks_app_task"' in sql
        waits.set()
        return execute(sql, *rest)

    def wait() -> Task:
        try:
            with connection.execute_wrapper(count):
                return waiting.wait_for(task, follow=False)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waited = pool.submit(wait)
        waits.wait()
        for number in range(300):
            Task.objects.filter(pk=task.pk).update(progress=number / 300)
        lifecycle.complete({claim_of(taken): "done"})
        ended = waited.result()
    assert (ended.status, ended.result) == (Status.COMPLETED, "done")
    # One more for the last read, which includes the result.
    assert looks <= (time.monotonic() - began) / waiting.REST_SECONDS + 2


def test_without_a_terminal_prints_a_line_per_text_and_tenth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = saved(Status.RUNNING)
    with waiting._Follower(task, enabled=True) as follower:
        for text, value in (
            ("", None),
            ("counting", None),
            ("counting", 0.05),
            ("counting", 0.11),
            ("counting", 0.19),
            ("counting", 0.2),
            ("done", 0.21),
            ("", 0.3),
        ):
            task.progress_text, task.progress = text, value
            follower.show(task)
    assert capsys.readouterr().err.splitlines() == [
        "counting",
        "11% counting",
        "20% counting",
        "21% done",
        "30%",
    ]
