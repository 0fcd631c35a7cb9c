"""Start failed and cancelled tasks anew."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import as_json, each, find_tasks, tell
from tasks_app.models import Task
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import task_service


class Command(TaskCommand):
    help = (
        "Starts failed or cancelled tasks anew, each as another task with the same parameters. "
        "Exits with 0 when that was possible for all of them, else with 1. One that cannot be "
        "retried keeps no other from it. 2: wrong input, and nothing was done; 4: an unfinished "
        "task has the unique key, and nothing else was wrong; 75: the database did not answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tasks", nargs="+", metavar="task", help="An id, or its beginning.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the new ones as JSON."
        )

    def handle(self, *, tasks: list[str], as_json: bool, **_options: Any) -> None:
        def retried(task: Task) -> TaskStartResponse:
            started = task_service.retry_task(task.pk)
            if not as_json:
                self.stdout.write(f"{task.pk} is retried as {started.task_id}")
            return started

        started, refused = each(find_tasks(tasks), retried)
        if as_json:
            self._print_json(started)
        tell(refused)

    def _print_json(self, started: list[TaskStartResponse]) -> None:
        self.stdout.write(as_json(started))
