"""List tasks, the newest first."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from tasks_app import display
from tasks_app.management.terminal import Exit, as_json, find_user, plain_errors, shown
from tasks_app.models import Task, aware
from tasks_app.registry import find
from tasks_app.states import Status

WORDS = {key: str(word) for key, word in display.WORDS.items()}


class Command(BaseCommand):
    help = "Lists tasks, the newest first. Exits with 0, also when there are none."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--status",
            action="append",
            choices=sorted(Status),
            help="Only tasks of this status. May be given more than once.",
        )
        parser.add_argument("--name", help="Only tasks of this class, by its dotted path or name.")
        parser.add_argument("--queue", help="Only tasks of this queue.")
        parser.add_argument("--owner", metavar="USER", help="Only tasks of this user.")
        parser.add_argument("--limit", type=int, default=20, help="At most so many. Default: 20.")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print them as a JSON array."
        )

    def handle(
        self,
        *,
        status: list[str] | None,
        name: str | None,
        queue: str | None,
        owner: str | None,
        limit: int,
        as_json: bool,
        **_options: Any,
    ) -> None:
        if limit < 1:
            raise CommandError(f"--limit must be 1 or more, not {limit}", returncode=Exit.USAGE)
        tasks = Task.primary.order_by("-created_at").defer("params", "error_traceback")
        if status:
            tasks = tasks.filter(status__in=status)
        if name:
            tasks = tasks.filter(name=self._name(name))
        if queue:
            tasks = tasks.filter(queue=queue)
        if owner:
            tasks = tasks.filter(owner_id=find_user(owner).pk)
        found = list(tasks[:limit])
        if as_json:
            self._print_json(found)
        elif not found:
            self.stdout.write("No tasks.")
        else:
            for task in found:
                self.stdout.write(line(task))

    def _name(self, name: str) -> str:
        # Rows may bear the name of a class that is gone.
        if Task.primary.filter(name=name).exists():
            return name
        with plain_errors():
            return find(name).name()

    def _print_json(self, found: list[Task]) -> None:
        self.stdout.write(as_json([task.info() for task in found]))


def line(task: Task) -> str:
    """A task in one line."""
    created = timezone.localtime(aware(task.created_at)).strftime("%Y-%m-%d %H:%M:%S")
    percent = display.percent(task, WORDS)
    now = task.error_message if task.status == Status.FAILED else task.progress_text
    text = " ".join(shown(now).split())
    return f"{task.pk}  {created}  {task.status:<9}  {percent:>4}  {task.label}  {text}".rstrip()
