"""The rows of the list of tasks: what their templates show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Left
from django.template.loader import get_template
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from tasks_app.admin.history import error_of
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.permissions import may_cancel, may_retry
from tasks_app.states import RETRIABLE, EventType, Status
from tasks_app.web import display
from tasks_app.web.display import duration, elapsed, time_left
from tasks_app.web.words import LIST_WORDS

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    from tasks_app.permissions import User

#: A row shows this many characters of an error.
ERROR_SHOWN = 200
#: Fields that the list does not read, because they can be long.
DEFERRED = ("params", "result", "error_traceback", "error_message")


def shown(tasks: QuerySet[Task]) -> QuerySet[Task]:
    """Read the fields that rows show in one query, and none of the long fields."""
    return (
        tasks.select_related("owner", "worker")
        .defer(*DEFERRED)
        .annotate(error_start=Left("error_message", ERROR_SHOWN), again_id=F("retried_as__pk"))
    )


class Rows:
    """The data that all rows of a page share."""

    def __init__(self, user: User, now: datetime, site: str) -> None:
        self.user = user
        self.now = now
        self.site = site
        self.words = {key: str(word) for key, word in LIST_WORDS.items()}
        self._labels: dict[str, str] = {}
        #: The last error of each task that waits for its next attempt.
        self.last_errors: dict[UUID, str] = {}

    @classmethod
    def of(cls, tasks: Iterable[Task], user: User, now: datetime, site: str) -> list[Row]:
        """Give each task a `row` for the columns to show. `now` is the database's time.

        `site` is the name of the AdminSite that links lead to: there may be several.
        """
        shared = cls(user, now, site)
        rows = [Row(task, shared) for task in tasks]
        shared.last_errors = _last_errors(
            [row.task.pk for row in rows if row.task.status == Status.PENDING and row.task.attempt]
        )
        for row in rows:
            row.task.row = row  # type: ignore[attr-defined]
        return rows

    def url(self, view: str, task: Task) -> str:
        return reverse(f"admin:tasks_app_task_{view}", args=[task.pk], current_app=self.site)

    def label(self, task: Task) -> str:
        if task.name not in self._labels:
            self._labels[task.name] = task.label
        return self._labels[task.name]


@dataclass(frozen=True, slots=True)
class Row:
    """One task, as the list shows it."""

    task: Task
    shared: Rows

    @property
    def info(self) -> dict[str, Any]:
        """The data of TaskInfo without its long fields, and with fields for operators."""
        task = self.task
        return {
            "task_id": str(task.pk),
            "status": str(task.status),
            "progress": {"text": task.progress_text, "value": task.progress},
            "progress_time": task.progress_at and aware(task.progress_at).isoformat(),
            "attempt": task.attempt,
            "max_attempts": task.max_attempts,
            "cancel_requested": task.cancel_requested_at is not None,
            "created_time": aware(task.created_at).isoformat(),
            "run_after": aware(task.run_after).isoformat(),
            "start_time": task.started_at and aware(task.started_at).isoformat(),
            "end_time": task.finished_at and aware(task.finished_at).isoformat(),
            "lost": self.is_lost,
        }

    @property
    def info_json(self) -> str:
        return json.dumps(self.info)

    @property
    def label(self) -> str:
        return self.shared.label(self.task)

    @property
    def failure(self) -> str:
        """Why the task failed, or its last attempt if another follows; in words for staff."""
        if self.task.error_type:
            return f"{self.task.error_type}: {getattr(self.task, 'error_start', '')}"
        return self.shared.last_errors.get(self.task.pk, "")

    @property
    def owner(self) -> str:
        return self.task.owner.get_username() if self.task.owner else ""

    @property
    def bar_value(self) -> str:
        """The filled fraction; empty if it is unknown."""
        value = display.bar_value(self.task)
        return "" if value is None else str(value)

    @property
    def percent(self) -> str:
        return display.percent(self.task, self.shared.words)

    @property
    def text(self) -> str:
        return display.text(self.task)

    @property
    def worker(self) -> str:
        return str(self.task.worker) if self.task.worker else ""

    @property
    def is_lost(self) -> bool:
        """Whether its lease has expired, by the database's clock."""
        expires = self.task.lease_expires_at
        return self.task.status == Status.RUNNING and expires is not None and expires < self.now

    @property
    def now(self) -> datetime:
        return self.shared.now

    @property
    def is_cancelling(self) -> bool:
        return self.task.cancel_requested_at is not None and not self.task.is_terminal

    @property
    def state(self) -> str:
        words = self.shared.words
        return words["cancelling"] if self.is_cancelling else words[f"is_{self.task.status}"]

    @property
    def remaining(self) -> str:
        """The time left, in words; empty if its worker may be lost."""
        return "" if self.is_lost else time_left(self.task, self.shared.words, self.now)

    @property
    def waited(self) -> str:
        """How long it waited from the time at which it could start, or how long until that time."""
        task = self.task
        until = (task.finished_at or self.now) if task.status == Status.PENDING else task.started_at
        until = until or task.finished_at or self.now
        seconds = (until - task.run_after).total_seconds()
        if self.is_scheduled:
            return self._said("starts_in", -seconds)
        return duration(max(0.0, seconds), self.shared.words)

    @property
    def is_scheduled(self) -> bool:
        """Whether it is pending and cannot start for more than a second."""
        seconds = (self.task.run_after - self.now).total_seconds()
        return self.task.status == Status.PENDING and seconds > 1

    @property
    def ran(self) -> str:
        seconds = elapsed(self.task, self.now)
        return "" if seconds is None else duration(seconds, self.shared.words)

    @property
    def attempt(self) -> str:
        """The number of the current or last attempt; empty if none began."""
        words = self.shared.words
        if not self.task.attempt:
            return ""
        return words["attempt_of"].format(
            attempt=self.task.attempt, max_attempts=self.task.max_attempts
        )

    @property
    def url(self) -> str:
        return self.shared.url("change", self.task)

    def _said(self, word: str, seconds: float) -> str:
        words = self.shared.words
        return words[word].format(duration=duration(seconds, words))

    def buttons(self) -> list[dict[str, Any]]:
        """Return the buttons for this user."""
        user, task = self.shared.user, self.task
        offered: list[tuple[str, _StrPromise, bool]] = []
        if not task.is_terminal and may_cancel(user, task):
            offered.append(("cancel", _("Cancel"), not self.is_cancelling))
        again = getattr(task, "again_id", None)
        if task.status != Status.COMPLETED and again is None and may_retry(user, task):
            offered.append(("retry", _("Retry"), task.status in RETRIABLE))
        return [
            {"name": name, "label": label, "visible": visible, "url": self.shared.url(name, task)}
            for name, label, visible in offered
        ]


def _last_errors(waiting: list[UUID]) -> dict[UUID, str]:
    """Return the last error of each task, in one query; in none if there are no tasks.

    A task logs nothing between attempts, so the database finds each at the end of its history.
    """
    if not waiting:
        return {}
    failures = TaskEvent.objects.filter(task=OuterRef("pk"), event_type=EventType.RETRY_SCHEDULED)
    newest = Subquery(failures.order_by("-id").values("data")[:1])
    found = Task.objects.filter(pk__in=waiting).annotate(failure=newest)
    return {
        pk: error_of(data, ERROR_SHOWN) for pk, data in found.values_list("pk", "failure") if data
    }


#: The columns of the list, in their order. Each has a template, cell_<column>.html.
COLUMNS = ("task", "state", "progress_bar", "owned", "tried", "times")


def cell(column: str, task: Task) -> str:
    """Render one cell of a task that has a `row`."""
    template = get_template(f"admin/tasks_app/task/cell_{column}.html")
    return template.render({"task": task, "row": task.row})  # type: ignore[attr-defined]


class Columns:
    """The cells of a row. Only the server renders them, also for live updates."""

    @admin.display(description=_("task"))
    def task(self, task: Task) -> str:
        return cell("task", task)

    @admin.display(description=_("status"))
    def state(self, task: Task) -> str:
        return cell("state", task)

    @admin.display(description=_("progress"))
    def progress_bar(self, task: Task) -> str:
        return cell("progress_bar", task)

    @admin.display(description=_("owner, queue"))
    def owned(self, task: Task) -> str:
        return cell("owned", task)

    @admin.display(description=_("attempt, worker"))
    def tried(self, task: Task) -> str:
        return cell("tried", task)

    @admin.display(description=display.zoned(_("time")))
    def times(self, task: Task) -> str:
        return cell("times", task)
