"""List tasks, the newest first."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tasks_app.exceptions import UnknownTask
from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import (
    ROWS_MAX,
    UNSHOWN,
    as_json,
    find_user,
    given,
    in_range,
)
from tasks_app.models import Task, aware
from tasks_app.models.expressions import Unindexed
from tasks_app.models.querysets import TaskQuerySet
from tasks_app.schemas import escaped
from tasks_app.states import UNFINISHED, Status
from tasks_app.store.clock import parse_time
from tasks_app.tasks.registry import find
from tasks_app.web import display, words

WORDS = {key: str(word) for key, word in words.WORDS.items()}
#: The number of tasks to search if no index selects the requested ones.
WINDOW = 50_000


def read_time(text: str) -> datetime:
    """Parse a time. Without a zone, it is in the site's time zone."""
    time = parse_time(text)
    if time is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 2026-11-25T16:30:00")
    return time


class Command(TaskCommand):
    help = (
        f"Lists tasks, the newest first. Searches {WINDOW:,} tasks for a status, a name or a "
        "queue, and reports on stderr if there are more. Exits with 0, also if there are no tasks; "
        "2 on wrong input; 75 if the database does not answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--status",
            action="append",
            choices=sorted(Status),
            help="Only tasks of this status. May be given more than once.",
        )
        parser.add_argument(
            "--name", type=given, help="Only tasks of this class, by its dotted path or name."
        )
        parser.add_argument("--queue", type=given, help="Only tasks of this queue.")
        parser.add_argument("--owner", type=given, metavar="USER", help="Only tasks of this user.")
        parser.add_argument(
            "--before", type=read_time, metavar="TIME", help="Only tasks created before this time."
        )
        parser.add_argument("--limit", type=int, default=20, help="At most this many. Default: 20.")
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
        before: datetime | None,
        limit: int,
        as_json: bool,
        **_options: Any,
    ) -> None:
        in_range("--limit", limit, 1, ROWS_MAX)
        unknown: UnknownTask | None = None
        wanted: dict[str, Any] = {}
        if status:
            wanted["status__in"] = status
        if queue:
            wanted["queue"] = queue
        if name:
            try:
                wanted["name"] = find(name).name()
            except UnknownTask as error:
                # Rows may have the name of a class that no longer exists.
                wanted["name"], unknown = name, error
        tasks = Task.primary.defer(*UNSHOWN, *([] if as_json else ["result"]))
        if owner:
            tasks = tasks.filter(owner_id=find_user(owner).pk)
        if before:
            tasks = tasks.filter(created_at__lt=before)
        tasks, end = newest(tasks, wanted)
        found = list(tasks[:limit])
        if end is not None and len(found) < limit:
            older = f"--before {aware(end).isoformat()}"
            self.stderr.write(f"Searched {WINDOW:,} tasks. For older ones: {older}")
        if not found and unknown is not None:
            raise unknown
        if as_json:
            self._print_json(found)
        elif not found:
            self.stdout.write("No tasks.")
        else:
            for task in found:
                self.stdout.write(line(task))

    def _print_json(self, found: list[Task]) -> None:
        self.stdout.write(as_json([task.info(for_staff=True) for task in found]))


def newest(tasks: TaskQuerySet, wanted: dict[str, Any]) -> tuple[TaskQuerySet, datetime | None]:
    """Return the requested tasks, the newest first, and the time at which the search window ends.

    The time is None if there is no window, or if it contains all tasks.
    """
    ordered = tasks.order_by("-created_at")
    if not wanted:
        return ordered, None
    if UNFINISHED.issuperset(wanted.get("status__in", Status)):
        unfinished = tasks.unfinished()
        if unfinished.order_by()[: WINDOW + 1].count() <= WINDOW:
            # The index of unfinished tasks finds even old ones. The one by age might be read whole.
            by_age = Unindexed("created_at").desc()
            return unfinished.filter(**wanted).order_by(by_age), None
    # The last task in the window, and the first one beyond it.
    edge = ordered.values_list("created_at", flat=True)[WINDOW - 1 : WINDOW + 1]
    end, beyond = (*edge, None, None)[:2]
    if beyond is None:
        return ordered.filter(**wanted), None
    return ordered.filter(**wanted, created_at__gte=end), end


def line(task: Task) -> str:
    """Return a task as one line."""
    created = timezone.localtime(aware(task.created_at)).strftime("%Y-%m-%d %H:%M:%S")
    percent = display.percent(task, WORDS)
    latest = task.error_message if task.status == Status.FAILED else task.progress_text
    text = escaped(" ".join(latest.split()))
    label = escaped(task.label)
    return f"{task.pk}  {created}  {task.status:<9}  {percent:>4}  {label}  {text}".rstrip()
