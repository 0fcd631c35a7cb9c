"""Show one task with its history."""

from __future__ import annotations

import json
from textwrap import indent
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tasks_app.management.command import TaskCommand
from tasks_app.management.commands.list_tasks import WORDS
from tasks_app.management.terminal import (
    ROWS_MAX,
    as_json,
    ending,
    find_task,
    in_range,
)
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.schemas import escaped
from tasks_app.web import display


class Command(TaskCommand):
    help = (
        "Shows a task and its newest events, but not its parameters, which may be secret. "
        "Exits with 0; 1 if the task does not exist; 2 on wrong input; 75 if the database does "
        "not answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("task", help="The task's id, or its beginning.")
        parser.add_argument(
            "--events",
            type=int,
            default=50,
            help="At most this many events, the newest. Default: 50.",
        )
        parser.add_argument("--with-traceback", action="store_true", help="Show the traceback.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print it as one JSON object."
        )

    def handle(
        self, *, task: str, events: int, with_traceback: bool, as_json: bool, **_options: Any
    ) -> None:
        in_range("--events", events, 0, ROWS_MAX)
        found = find_task(task)
        newest = TaskEvent.primary.filter(task=found).order_by("-id")[:events]
        history = list(reversed(newest))
        if as_json:
            self._print_json(found, history, with_traceback)
            return
        for name, value in described(found).items():
            if value:
                self.stdout.write(f"{name + ':':<10} " + escaped(value, keep="\n"))
        for event in history:
            self.stdout.write(line(event))
        if with_traceback and found.error_traceback:
            self.stdout.write(indent(escaped(found.error_traceback, keep="\n"), "    "))

    def _print_json(self, task: Task, history: list[TaskEvent], with_traceback: bool) -> None:
        data = task.info(for_staff=True).model_dump(mode="json")
        data["events"] = [event.message(for_staff=True) for event in history]
        if with_traceback:
            data["traceback"] = task.error_traceback
        self.stdout.write(as_json(data))


def described(task: Task) -> dict[str, str]:
    """Return the properties of a task to show, by name."""
    now = timezone.now()
    return {
        "Task": f"{task.pk}",
        "Name": f"{task.label} ({task.name})",
        "Status": display.describe(task, WORDS, now),
        "Progress": " ".join([display.percent(task, WORDS), escaped(task.progress_text)]).strip(),
        "Attempt": f"{task.attempt} of {task.max_attempts}",
        "Time": display.time_taken(task, WORDS, now),
        "Left": display.time_left(task, WORDS, now),
        "Queue": task.queue,
        "Owner": str(task.owner or ""),
        "Worker": str(task.worker or ""),
        "Created": local_time(task.created_at),
        "Started": local_time(task.started_at) if task.started_at else "",
        "Ended": local_time(task.finished_at) if task.finished_at else "",
        "Retry of": str(task.retried_from_id or ""),
        "Outcome": ending(task) if task.is_terminal else "",
    }


def local_time(value: Any) -> str:
    return timezone.localtime(aware(value)).isoformat(sep=" ", timespec="seconds")


def line(event: TaskEvent) -> str:
    """Return an event as one line."""
    data = json.dumps(event.data, ensure_ascii=False) if event.data else ""
    return escaped(f"{local_time(event.timestamp)}  {event.event_type}  {data}").rstrip()
