"""Cancel tasks."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import (
    INTERRUPTED,
    UNSHOWN,
    Exit,
    as_json,
    each,
    ending,
    find_tasks,
    raise_refusals,
    reread,
)
from tasks_app.management.waiting import wait_for
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status


class Command(TaskCommand):
    help = (
        "Cancels pending tasks and asks running tasks to stop. Tasks that cannot be cancelled are "
        "reported, and the others are still cancelled. Exits with 0 if this worked for all tasks "
        "(with --wait: if all ended as cancelled), else with 1. 2: wrong input, nothing was done; "
        "75: the database did not answer. Ctrl-C stops only the waiting."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tasks", nargs="+", metavar="task", help="A task id, or its beginning.")
        parser.add_argument("--wait", action="store_true", help="Wait until they have ended.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print them as a JSON array."
        )

    def handle(self, *, tasks: list[str], wait: bool, as_json: bool, **_options: Any) -> None:
        named = find_tasks(tasks)
        try:
            found, refused = each(named, cancelled)
            if wait:
                found, gone = each(found, lambda task: wait_for(task, follow=False))
                refused += gone
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. Tasks that were asked to stop will still stop.",
                returncode=INTERRUPTED,
            ) from None
        if as_json:
            self._print_json(found)
        else:
            for task in found:
                self.stdout.write(f"{task.pk}: {outcome(task)}")
        raise_refusals(refused)
        if wait and any(task.status != Status.CANCELLED for task in found):
            sys.exit(Exit.FAILED)

    def _print_json(self, found: list[Task]) -> None:
        self.stdout.write(as_json([task.info(for_staff=True) for task in found]))


def cancelled(task: Task) -> Task:
    """Cancel a task and return its state after that."""
    task_service.cancel_task(task.pk)
    return reread(task.pk, *UNSHOWN)


def outcome(task: Task) -> str:
    return ending(task) if task.is_terminal else "Stopping…"
