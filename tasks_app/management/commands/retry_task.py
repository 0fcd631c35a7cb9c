"""Retry failed and cancelled tasks."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import as_json, each, find_tasks, raise_refusals
from tasks_app.models import Task
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import task_service


class Command(TaskCommand):
    help = (
        "Retries failed or cancelled tasks, each as a new task with the same parameters. Tasks "
        "that cannot be retried are reported, and the others are still retried. Exits with 0 if "
        "all were retried, else with 1. 2: wrong input, nothing was done; 4: an unfinished task "
        "has the unique key, and nothing else failed; 75: the database did not answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tasks", nargs="+", metavar="task", help="A task id, or its beginning.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the new tasks as JSON."
        )

    def handle(self, *, tasks: list[str], as_json: bool, **_options: Any) -> None:
        def retried(task: Task) -> TaskStartResponse:
            started = task_service.retry_task(task.pk)
            if not as_json:
                self.stdout.write(f"{task.pk} retried as {started.task_id}")
            return started

        started, refused = each(find_tasks(tasks), retried)
        if as_json:
            self._print_json(started)
        raise_refusals(refused)

    def _print_json(self, started: list[TaskStartResponse]) -> None:
        self.stdout.write(as_json(started))
