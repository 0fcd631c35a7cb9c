"""Cancel tasks."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from tasks_app.management.terminal import (
    as_json,
    ending,
    find_task,
    plain_errors,
    wait_for,
)
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status


class Command(BaseCommand):
    help = (
        "Cancels tasks: those that wait at once; those that run are asked to stop. Exits with 0 "
        "when that was possible for all of them, else with 1."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tasks", nargs="+", metavar="task", help="An id, or its beginning.")
        parser.add_argument("--wait", action="store_true", help="Wait until they have ended.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print them as a JSON array."
        )

    def handle(self, *, tasks: list[str], wait: bool, as_json: bool, **_options: Any) -> None:
        # All or none: a typing error in the last must not cancel the first.
        found = [find_task(text) for text in tasks]
        with plain_errors():
            for task in found:
                task_service.cancel_task(task.pk)
                task.refresh_from_db()
        if wait:
            found = [wait_for(task, follow=False) for task in found]
        if as_json:
            self._print_json(found)
        else:
            for task in found:
                self.stdout.write(f"{task.pk}: {said(task)}")
        if wait and any(task.status != Status.CANCELLED for task in found):
            sys.exit(1)

    def _print_json(self, found: list[Task]) -> None:
        self.stdout.write(as_json([task.info() for task in found]))


def said(task: Task) -> str:
    return ending(task) if task.is_terminal else "Asked to stop."
