"""Waiting for a task, and showing its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections
from tqdm import tqdm

from tasks_app.management.terminal import UNSHOWN, reread
from tasks_app.models import Task, TaskEvent
from tasks_app.notify import watch
from tasks_app.schemas import escaped
from tasks_app.states import EventType, Status
from tasks_app.store.health import health
from tasks_app.store.ledger import alias
from tasks_app.worker.runs import NEVER
from tasks_app.worker.trouble import TROUBLE, Trouble, database_fault

#: The interval between looks at a task if no change is signalled; and the least pause between two
#: looks if others commit all the time.
LOOK_SECONDS, REST_SECONDS = 1.0, 0.05
#: After this many seconds of waiting, check whether a worker is running.
ALONE_SECONDS = 3.0


def wait_for(task: Task, *, follow: bool) -> Task:
    """Return the task once it has ended. If `follow` is true, show its progress on stderr.

    The database signals changes if it can, as it does for workers. If it does not answer, this
    keeps trying. Raises CommandError if the task is removed.
    """
    alone_at = time.monotonic() + ALONE_SECONDS
    trouble = Trouble()
    with watch(alias()) as changes, _Follower(task, enabled=follow) as follower:
        while not task.is_terminal:
            changes.pause(REST_SECONDS)
            changes.wait(LOOK_SECONDS)
            try:
                seen = reread(task.pk, "result", *UNSHOWN)
                task = reread(task.pk, *UNSHOWN) if seen.is_terminal else seen
                follower.show(task)
                if time.monotonic() > alone_at and task.status == Status.PENDING:
                    alone_at = NEVER
                    _warn_if_alone(task)
                trouble = Trouble()
            except TROUBLE as error:
                if not trouble.started:
                    say(f"{database_fault(error)}. Waiting until it does.")
                connections[alias()].close()
                changes.pause(trouble.strike(time.monotonic()))
    return task


def say(line: str) -> None:
    """Write a line to stderr, above the bar if one is shown."""
    tqdm.write(line, file=sys.stderr)


def _warn_if_alone(task: Task) -> None:
    if health(queue=task.queue).workers_alive == 0:
        say(f"No worker is running for queue {task.queue!r}. Start one: manage.py run_tasks")


class _Follower:
    """Shows a progress bar on a terminal, or lines elsewhere; and the task's log."""

    def __init__(self, task: Task, *, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = 0
        #: The last line's text and the tenths done.
        self._last: tuple[str, int] = "", 0
        self._bar: tqdm[Any] = tqdm(
            total=100,
            desc=escaped(task.label),
            disable=not (enabled and sys.stderr.isatty()),
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def show(self, task: Task) -> None:
        if not self._enabled:
            return
        for line in self._log(task):
            say(line)
        if self._bar.disable:
            text = escaped(task.progress_text)
            state = text, int((task.progress or 0.0) * 10)
            if state not in (self._last, ("", 0)):
                value = f"{task.progress:.0%} " if task.progress is not None else ""
                say(f"{value}{text}".rstrip())
            self._last = state
        else:
            self._bar.set_postfix_str(escaped(task.progress_text), refresh=False)
            # A new attempt starts from 0 again.
            self._bar.n = round((task.progress or 0.0) * 100)
            self._bar.refresh()

    def _log(self, task: Task) -> Iterator[str]:
        events = TaskEvent.primary.filter(
            task=task, id__gt=self._seen, event_type=EventType.LOG
        ).order_by("id")
        for event in events:
            self._seen = event.pk
            yield escaped(f"{event.data['level']}: {event.data['message']}")
