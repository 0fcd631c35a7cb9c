"""Waiting for a task, and showing meanwhile how it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections
from tqdm import tqdm

from tasks_app.changes import watch
from tasks_app.health import health
from tasks_app.ledger import alias
from tasks_app.management.terminal import UNSHOWN, reread
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import escaped
from tasks_app.states import EventType, Status
from tasks_app.worker.run import NEVER
from tasks_app.worker.trouble import TROUBLE, Trouble, database_fault

#: How often it looks at a task, where the database does not say that something happened; and how
#: long it leaves it alone where others commit all the time.
LOOK_SECONDS, REST_SECONDS = 1.0, 0.05
#: How long a task may wait before it is worth asking whether there is anybody to run it.
ALONE_SECONDS = 3.0


def wait_for(task: Task, *, follow: bool) -> Task:
    """Return the task once it has ended; meanwhile, if asked to, show how it goes on stderr.

    The database tells of changes where it can, as it does to workers. Where it does not answer,
    the next look may. Raises CommandError where the task was removed.
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
    """Write a line to stderr, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)


def _warn_if_alone(task: Task) -> None:
    if health(queue=task.queue).workers_alive == 0:
        say(f"No worker of the queue {task.queue!r} is alive. Start one by manage.py run_tasks")


class _Follower:
    """A bar on a terminal, or lines where there is none; and the task's log."""

    def __init__(self, task: Task, *, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = 0
        #: The text and the tenths done of the last line.
        self._said: tuple[str, int] = "", 0
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
            news = text, int((task.progress or 0.0) * 10)
            if news not in (self._said, ("", 0)):
                value = f"{task.progress:.0%} " if task.progress is not None else ""
                say(f"{value}{text}".rstrip())
            self._said = news
        else:
            self._bar.set_postfix_str(escaped(task.progress_text), refresh=False)
            # An attempt that begins anew may go back.
            self._bar.n = round((task.progress or 0.0) * 100)
            self._bar.refresh()

    def _log(self, task: Task) -> Iterator[str]:
        news = TaskEvent.primary.filter(
            task=task, id__gt=self._seen, event_type=EventType.LOG
        ).order_by("id")
        for event in news:
            self._seen = event.pk
            yield escaped(f"{event.data['level']}: {event.data['message']}")
