"""Start failed and cancelled tasks anew."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from tasks_app.management.terminal import as_json, find_task, plain_errors
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import task_service


class Command(BaseCommand):
    help = (
        "Starts failed or cancelled tasks anew, each as another task with the same parameters. "
        "Exits with 0 when that was possible for all of them, else with 1."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tasks", nargs="+", metavar="task", help="An id, or its beginning.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the new ones as JSON."
        )

    def handle(self, *, tasks: list[str], as_json: bool, **_options: Any) -> None:
        found = [find_task(text) for text in tasks]
        started = []
        with plain_errors():
            for task in found:
                started.append(task_service.retry_task(task.pk))
                if not as_json:
                    self.stdout.write(f"{task.pk} is retried as {started[-1].task_id}")
        if as_json:
            self._print_json(started)

    def _print_json(self, started: list[TaskStartResponse]) -> None:
        self.stdout.write(as_json(started))
