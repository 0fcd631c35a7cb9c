"""`{% load tasks %}`: a task's progress bar, as it stands and live from then on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from django import template
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.template.context import Context
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext_lazy as _

from tasks_app.conf import task_settings
from tasks_app.models import Task, aware
from tasks_app.permissions import may_cancel
from tasks_app.states import Status

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

register = template.Library()

#: Every word the script may show, so that they are translated here and nowhere else.
WORDS: Mapping[str, str | _StrPromise] = {
    "waiting": _("Waiting to start"),
    "waiting_until": _("Waiting until {time}"),
    "retry_at": _("Attempt {attempt} of {max_attempts} failed, trying again at {time}"),
    "running": _("Running"),
    "running_again": _("Running, attempt {attempt} of {max_attempts}"),
    "cancelling": _("Cancelling…"),
    "completed": _("Completed"),
    "failed": _("Failed"),
    "cancelled": _("Cancelled"),
    "percent": _("{percent}%"),
    "took": _("took {duration}"),
    "days": _("{days} d {hours} h"),
    "hours": _("{hours} h {minutes} min"),
    "minutes": _("{minutes} min {seconds} s"),
    "seconds": _("{seconds} s"),
    "interrupted": _("Live updates are interrupted. Checking every few seconds…"),
    "lost": _("Connection lost. Trying again…"),
    "polled": _("Many tasks are shown, so this one is checked every few seconds."),
    "gone": _("No more updates: the task was removed, or you were signed out. Reload the page."),
    "denied": _("Live updates stopped: you may have been signed out. Reload the page."),
    "cancel_refused": _(
        "You may not cancel this task. If you should, reload the page and try again."
    ),
    "cancel_failed": _("The task could not be cancelled. Try again."),
}

#: Where a page keeps how many bars it has.
_COUNT = "tasks_app.task_progress"


@register.inclusion_tag("tasks_app/task_progress.html", takes_context=True)
def task_progress(
    context: Context, task: Task, *, label: str = "", url: str = "", cancel: bool = True
) -> dict[str, Any]:
    """Show a task's progress: its real state at once, then live.

    `label` replaces the task's name, `url` makes a link of it. `cancel=False` leaves the button
    out, as one must inside a form of one's own, where HTML allows no second form.
    """
    number = _number_on_page(context)
    bar = progress_bar(
        task, request=context.get("request"), label=label, url=url, may_offer_cancel=cancel
    )
    # The same task may be shown twice on a page, and an id may not.
    return bar | {"first": number == 1, "label_id": f"task-progress-{bar['task_id']}-{number}"}


def progress_bar(
    task: Task,
    *,
    request: HttpRequest | None = None,
    label: str = "",
    url: str = "",
    may_offer_cancel: bool = True,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return what the template shows of a task. Without a request nobody is known, who may cancel.

    Raises TypeError for anything but a Task.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{{% task_progress %}} takes a Task, not {task!r} ({type(task).__name__}). Pass the "
            f"row itself, such as Task.objects.get(pk=…), and check the name of the variable."
        )
    now = now or timezone.now()
    words = {key: str(word) for key, word in WORDS.items()}
    ended = task.is_terminal
    cancelling = task.cancel_requested_at is not None and not ended
    cancel_url = csrf_token = None
    wanted = may_offer_cancel and not ended and not cancelling
    if wanted and request and may_cancel(getattr(request, "user", AnonymousUser()), task):
        # Not from the context: a page rendered without context processors has no token.
        cancel_url, csrf_token = _url("cancel", task.pk), get_token(request)
    streams_url, statuses_url = _url("streams"), _url("statuses")
    return {
        "task_id": str(task.pk),
        "status": str(task.status),
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "label": label or task.label,
        "url": url,
        "state": describe(task, words, now),
        "value": bar_value(task),
        "percent": percent(task, words),
        "text": task.progress_text,
        "error": f"{task.error_type}: {task.error_message}" if task.error_type else "",
        "started": aware(task.started_at).isoformat() if task.started_at else "",
        "wait": wait(task, now),
        "elapsed": elapsed(task, now),
        "duration": time_taken(task, words, now),
        "ended": ended,
        "cancelling": cancelling,
        "cancel_url": cancel_url,
        "csrf_token": csrf_token,
        "next": request.get_full_path() if request else "",
        # Where the site leaves out `tasks_app.urls`, the bar is right but stands still.
        "live": bool(streams_url and statuses_url),
        "streams_url": streams_url,
        "statuses_url": statuses_url,
        "max_tasks": task_settings().stream_max_tasks,
        "keepalive": task_settings().stream_keepalive_seconds,
        "words": json.dumps(words),
    }


def describe(task: Task, words: Mapping[str, str], now: datetime) -> str:
    """Say in words how the task stands. The script's `describe` says the same."""
    if task.is_terminal:
        return words[task.status]
    if task.cancel_requested_at:
        return words["cancelling"]
    attempt = {"attempt": task.attempt, "max_attempts": task.max_attempts}
    if task.status == Status.RUNNING:
        return words["running_again" if task.attempt > 1 else "running"].format(**attempt)
    if not wait(task, now):
        return words["waiting"]
    until = timezone.localtime(aware(task.run_after))
    # The script shows the viewer's own zone; here it is the server's, so it says which.
    time = f"{date_format(until, 'SHORT_DATETIME_FORMAT')} {until.tzname()}"
    return words["retry_at" if task.attempt else "waiting_until"].format(time=time, **attempt)


def bar_value(task: Task) -> float | None:
    """Return the filled part of the bar; None where it cannot be known."""
    match task.status:
        case Status.COMPLETED:
            return 1.0
        case Status.RUNNING:
            return task.progress
        case Status.PENDING:
            return 0.0
        case _:
            return task.progress or 0.0


def percent(task: Task, words: Mapping[str, str]) -> str:
    """Return the part done in words, rounded down so that 100 means all of it."""
    value = bar_value(task)
    if value is None or task.progress is None or task.status == Status.PENDING:
        return ""
    return words["percent"].format(percent=math.floor(value * 100 + 1e-9))


def wait(task: Task, now: datetime) -> float:
    """Return for how many seconds a pending task may not start yet."""
    if task.status != Status.PENDING:
        return 0.0
    # A web host whose clock is behind the database's must not make a new task wait.
    now = max(aware(now), aware(task.created_at))
    return max(0.0, (aware(task.run_after) - now).total_seconds())


def elapsed(task: Task, now: datetime) -> float | None:
    """Return for how many seconds the newest attempt runs, or ran; None before it began."""
    if task.started_at is None or task.status == Status.PENDING:
        return None
    return max(0.0, (aware(task.finished_at or now) - aware(task.started_at)).total_seconds())


def time_taken(task: Task, words: Mapping[str, str], now: datetime) -> str:
    """Return `elapsed` in words."""
    seconds = elapsed(task, now)
    if seconds is None:
        return ""
    time = duration(seconds, words)
    return time if task.status == Status.RUNNING else words["took"].format(duration=time)


def duration(seconds: float, words: Mapping[str, str]) -> str:
    """Say a length of time in its two largest units. The script's `duration` says the same."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    unit = "days" if days else "hours" if hours else "minutes" if minutes else "seconds"
    return words[unit].format(days=days, hours=hours, minutes=minutes, seconds=rest)


def _url(name: str, *args: object) -> str | None:
    try:
        return reverse(f"tasks_app:{name}", args=args)
    except NoReverseMatch:
        return None


def _number_on_page(context: Context) -> int:
    """Count the bars of the page that is being rendered, this one included.

    `render_context` has a frame for each template in it; the one of the page itself, which loops,
    includes and blocks all share, is the second, above the builtins.
    """
    page = cast(dict[str, int], context.render_context.dicts[:2][-1])
    page[_COUNT] = page.get(_COUNT, 0) + 1
    return page[_COUNT]
