"""The rows of the list of tasks. The list's script, admin-list.js, shows the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Left
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from tasks_app.admin.history import error_of
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.permissions import may_cancel, may_retry
from tasks_app.states import RETRIABLE, EventType, Status
from tasks_app.web import display
from tasks_app.web.display import bar_value, duration, elapsed, percent, time_element, time_left

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    from tasks_app.permissions import User

#: Every text that the list's script may show, including those of the bar.
WORDS: Mapping[str, str | _StrPromise] = {
    **display.WORDS,
    **{f"is_{status.value}": status.label for status in Status},
    "starts_in": _("starts in {duration}"),
    "attempt_of": _("{attempt} of {max_attempts}"),
    "removed": _("Deleted"),
    "new_one": _("Show 1 new task"),
    # The script chooses between these, because it has no plural forms.
    "new_some": _("Show {count} new tasks"),
    "new_many": _("Show {count} or more new tasks"),
    "live": _("Live"),
    "paused": _("Paused"),
    "polling": _("Live updates are interrupted. Checking every few seconds…"),
    "no_stream": _("Updates every few seconds."),
    "unreachable": _("Connection lost. Trying again…"),
    "signed_out": _("Updates stopped: you may have been signed out. Reload the page."),
    "refused": _("Couldn't do that: {reason}"),
    "forbidden": _("you don't have permission, or you've signed in again. Reload the page."),
    "gone_now": _("the task no longer exists."),
    "no_answer": _("unexpected server response. Check the task and try again."),
    "news": _("{label}: {state}"),
}

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
        self.words = {key: str(word) for key, word in WORDS.items()}
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
            "attempt": task.attempt,
            "max_attempts": task.max_attempts,
            "cancel_requested": task.cancel_requested_at is not None,
            "created_time": aware(task.created_at).isoformat(),
            "run_after": aware(task.run_after).isoformat(),
            "start_time": task.started_at and aware(task.started_at).isoformat(),
            "end_time": task.finished_at and aware(task.finished_at).isoformat(),
            "error": self.error,
            "last_error": self.last_error,
            "worker": self.worker,
            "lost": self.is_lost,
            "stuck": task.stuck,
        }

    @property
    def error(self) -> dict[str, str] | None:
        message = getattr(self.task, "error_start", "")
        return {"type": self.task.error_type, "message": message} if self.task.error_type else None

    @property
    def last_error(self) -> str:
        return self.shared.last_errors.get(self.task.pk, "")

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

    def offers(self) -> list[tuple[str, str, bool]]:
        """Return the buttons for this user: name, label, and whether it is visible now."""
        user, task = self.shared.user, self.task
        offered: list[tuple[str, str, bool]] = []
        if not task.is_terminal and may_cancel(user, task):
            offered.append(("cancel", str(_("Cancel")), not self.is_cancelling))
        again = getattr(task, "again_id", None)
        if task.status != Status.COMPLETED and again is None and may_retry(user, task):
            offered.append(("retry", str(_("Retry")), task.status in RETRIABLE))
        return offered


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


def _row(task: Task) -> Row:
    row: Row = task.row  # type: ignore[attr-defined]
    return row


class Columns:
    """The cells of a row. They are rendered here; the page's script updates them later."""

    @admin.display(description=_("task"))
    def task(self, task: Task) -> SafeString:
        row = _row(task)
        error = f"{task.error_type}: {row.error['message']}" if row.error else row.last_error
        return format_html(
            '<a class="task-name" href="{}" data-part="label" dir="auto">{}</a>'
            '<span class="task-path">{}</span>'
            '<span class="task-error" data-part="error" dir="auto"{}>{}</span>'
            '<template data-task="{}" data-info="{}"></template>',
            row.url,
            _dotted(row.shared.label(task)),
            _dotted(task.name),
            SafeString("" if error else " hidden"),
            error,
            task.pk,
            json.dumps(row.info),
        )

    @admin.display(description=_("status"))
    def state(self, task: Task) -> SafeString:
        row = _row(task)
        return format_html(
            '<span class="task-status" data-part="status" data-status="{}"{}>'
            '<span class="task-icon" aria-hidden="true"></span>'
            '<span data-part="state">{}</span></span>'
            '<span class="task-badge" data-part="lost"{}>{}</span>'
            '<span class="task-badge" data-part="stuck"{}>{}</span>'
            '<span class="task-buttons">{}</span>',
            task.status,
            SafeString(" data-cancelling" if row.is_cancelling else ""),
            row.state,
            _hidden(not row.is_lost),
            _("Heartbeat lost"),
            _hidden(not task.stuck),
            _("Stuck thread"),
            _buttons(row),
        )

    @admin.display(description=_("progress"))
    def progress_bar(self, task: Task) -> SafeString:
        row, value = _row(task), bar_value(task)
        return format_html(
            '<progress class="task-bar" data-part="bar" data-status="{}" max="1"{}'
            ' aria-label="{}"></progress>'
            '<span class="task-said"><span data-part="percent">{}</span> '
            '<bdi data-part="text">{}</bdi> '
            '<bdi class="task-left" data-part="remaining">{}</bdi></span>',
            task.status,
            SafeString("") if value is None else format_html(' value="{}"', str(value)),
            f"{_('Progress')}: {row.shared.label(task)}",
            percent(task, row.shared.words),
            display.text(task),
            row.remaining,
        )

    @admin.display(description=_("owner, queue"))
    def owned(self, task: Task) -> SafeString:
        owner = task.owner.get_username() if task.owner else ""
        return _fact(_("Owner"), owner) + _fact(_("Queue"), task.queue)

    @admin.display(description=_("attempt, worker"))
    def tried(self, task: Task) -> SafeString:
        row = _row(task)
        return _fact(_("Attempt"), row.attempt, "attempt") + _fact(
            _("Worker"), row.worker, "worker"
        )

    @admin.display(description=display.zoned(_("time")))
    def times(self, task: Task) -> SafeString:
        row = _row(task)
        return (
            _fact(_("Created"), time_element(task.created_at))
            + _fact(_("Waited"), row.waited, "waited", unnamed=row.is_scheduled)
            + _fact(_("Run time"), row.ran, "ran")
        )


def _buttons(row: Row) -> SafeString:
    """Return buttons that submit the list's own form, because HTML allows no form within it.

    The list's form has the CSRF token.
    """
    return format_html_join(
        "",
        '<button type="submit" class="task-button" data-act="{}" formaction="{}"{}'
        ' aria-label="{}">{}</button>',
        (
            (
                name,
                row.shared.url(name, row.task),
                _hidden(not now),
                f"{label}: {row.shared.label(row.task)}",
                label,
            )
            for name, label, now in row.offers()
        ),
    )


def _dotted(name: str) -> SafeString:
    """Return a dotted name that can wrap after each dot."""
    return format_html_join(SafeString(".<wbr>"), "{}", ((part,) for part in name.split(".")))


def _hidden(hidden: bool) -> SafeString:
    return SafeString(" hidden" if hidden else "")


def _fact(name: Any, value: str, part: str = "", *, unnamed: bool = False) -> SafeString:
    """Return one value of a cell with its name, because phones hide the table's header.

    `unnamed` hides the name of a value that is clear without it.
    """
    return format_html(
        '<span class="task-fact"{}><span class="task-fact-name">{}</span> <bdi{}>{}</bdi></span>',
        SafeString(" data-unnamed" if unnamed else ""),
        name,
        format_html(' data-part="{}"', part) if part else "",
        value,
    )
