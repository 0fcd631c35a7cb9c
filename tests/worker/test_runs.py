"""One attempt, as the coordinator sees it."""

from __future__ import annotations

import time

from tasks_app.schemas import TaskProgressUpdate
from tasks_app.tasks.progress import LogLine
from tasks_app.worker.runs import NEVER
from tests.worker.runs import made


def test_run_is_claimed_before_it_starts() -> None:
    run = made()
    assert run.claimed <= time.monotonic()
    assert run.began == NEVER
    assert run.seconds == 0.0
    assert run.deadline == NEVER


def test_deadline_counts_from_the_start() -> None:
    run = made(timeout_seconds=5.0)
    assert run.deadline == NEVER
    run.began = 100.0
    assert run.deadline == 105.0
    run.task.timeout_seconds = None
    assert run.deadline == NEVER


def test_taken_updates_wait_until_they_are_written() -> None:
    """If a commit fails, its updates go into the next one."""
    run = made()
    run.handle.send_progress("one", 0.1)
    run.handle.log("first")
    run.take()
    run.take()
    assert run.progress == TaskProgressUpdate(text="one", value=0.1)
    assert run.lines == [LogLine("info", "first")]
    run.handle.send_progress("two", 0.2)
    run.handle.log("second")
    run.take()
    assert run.progress == TaskProgressUpdate(text="two", value=0.2)
    assert run.lines == [LogLine("info", "first"), LogLine("info", "second")]
    run.written(next_flush=7.0)
    assert (run.progress, run.lines, run.flush_at) == (None, [], 7.0)


def test_run_is_identified_by_its_task() -> None:
    run = made("shop.tasks.Import")
    assert str(run) == f"{run.task.pk} (shop.tasks.Import)"
    assert run.log_extra == {"task_id": str(run.task.pk)}
    assert run != made("shop.tasks.Import")
    assert run in {run}
