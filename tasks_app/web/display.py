"""The words that people read about a task, translated and the same on every page.

The page's script says the same when a task changes; tests compare the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.conf import settings
from django.urls import NoReverseMatch
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import lazy
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from tasks_app.logs import SafeLogger
from tasks_app.models import Task, aware
from tasks_app.permissions import may_view_all
from tasks_app.schemas import TaskError, clipped
from tasks_app.states import Status
from tasks_app.store.health import unserved

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    from tasks_app.permissions import User

#: The most characters of a result that a page shows. Programs can read the rest.
RESULT_SHOWN = 2_000
#: The time left is only estimated after this many seconds, and once this fraction is done.
ESTIMATE_AFTER = 2.0
ESTIMATE_FROM = 0.01
#: A task counts as silent after this part of the time before its last report, within these bounds.
STALLED_PART, STALLED_LEAST, STALLED_MOST = 0.25, 10.0, 60.0
#: After this many seconds, a ready task is stalled: probably no worker takes its queue.
STALLED_AFTER = 10.0
#: Seconds between two log messages that there is no worker.
WARN_AGAIN_AFTER = 60.0
#: The time of the last such message, at key "at".
_warned: dict[str, float] = {}

logger = SafeLogger("tasks_app.pages")


def page_url(task: Task, back: str = "") -> str:
    """Return the URL of a task's page, with `back` as the page to return to; empty without one."""
    try:
        url = task.get_absolute_url()
    except NoReverseMatch:
        return ""
    if not back:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode({'next': back})}"


def describe(task: Task, words: Mapping[str, str], now: datetime) -> str:
    """Return the state of the task in words. Matches the script's `describe`."""
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
    # The script shows the viewer's time zone. This is the server's, so it is named.
    time = f"{date_format(until, 'SHORT_DATETIME_FORMAT')} {until.tzname()}"
    return words["retry_at" if task.attempt else "waiting_until"].format(time=time, **attempt)


def bar_value(task: Task) -> float | None:
    """Return the filled fraction of the bar; None if it is unknown."""
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
    """Return the fraction done in words, rounded down so that 100 means all of it."""
    value = bar_value(task)
    if value is None or task.progress is None or task.status == Status.PENDING:
        return ""
    return words["percent"].format(percent=math.floor(value * 100 + 1e-9))


def text(task: Task) -> str:
    """Return what the task is doing; empty if it waits, because its text is of an old attempt."""
    return "" if task.status == Status.PENDING else task.progress_text


def wait(task: Task, now: datetime) -> float:
    """Return the number of seconds until a pending task may start."""
    if task.status != Status.PENDING:
        return 0.0
    # A web host with a slow clock must not make a new task look delayed.
    now = max(aware(now), aware(task.created_at))
    return max(0.0, (aware(task.run_after) - now).total_seconds())


def is_stalled(task: Task, now: datetime) -> bool:
    """Return whether a task has been ready for so long that there may be no worker for it."""
    if task.status != Status.PENDING or task._state.adding:  # not stored, so no worker sees it
        return False
    return (aware(now) - aware(task.run_after)).total_seconds() > STALLED_AFTER


def no_worker(queues: Collection[str], user: User) -> dict[str, str]:
    """Return the message for tasks of each queue that no live worker takes tasks from.

    Users who may see all tasks also read how to start a worker. With DEBUG, the message is also
    logged once a minute, for developers who forgot to start a worker.
    """
    found = unserved(queues)
    if not found:
        return {}
    now = monotonic()
    if settings.DEBUG and now - _warned.get("at", -math.inf) > WARN_AGAIN_AFTER:
        _warned["at"] = now
        names = ", ".join(sorted(found))
        logger.warning("No worker runs tasks of queue %s. Start one: manage.py run_tasks", names)
    message = _("Waiting for a worker")
    if may_view_all(user):
        message = _("Waiting for a worker. Start one: manage.py run_tasks")
    return dict.fromkeys(found, str(message))


def elapsed(task: Task, now: datetime) -> float | None:
    """Return the seconds that the newest attempt has run, or ran; None before it started."""
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


def _zoned(word: _StrPromise) -> str:
    return f"{word} ({timezone.get_current_timezone_name()})"


#: A word for a time, with the current time zone. Evaluated each time: a user may have their own.
zoned = lazy(_zoned, str)


def time_element(time: datetime) -> SafeString:
    """Return a time for operators, to the second, in the same format everywhere.

    The title names its time zone.
    """
    local = timezone.localtime(aware(time))
    formatted = f"{local:%Y-%m-%d %H:%M:%S}"
    return format_html(
        '<time datetime="{}" title="{} {}">{}</time>',
        local.isoformat(),
        formatted,
        local.tzname(),
        formatted,
    )


def duration(seconds: float, words: Mapping[str, str]) -> str:
    """Return a duration in its two largest units. Matches the script's `duration`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    unit = "days" if days else "hours" if hours else "minutes" if minutes else "seconds"
    return words[unit].format(days=days, hours=hours, minutes=minutes, seconds=rest)


def attempts(task: Task, words: Mapping[str, str]) -> str:
    """Return the attempt in words; empty if only one is allowed or `describe` includes it."""
    if task.max_attempts == 1 or task.attempt == 0 or task.status == Status.PENDING:
        return ""
    if task.status == Status.RUNNING and task.attempt > 1 and not task.cancel_requested_at:
        return ""
    return words["attempts"].format(attempt=task.attempt, max_attempts=task.max_attempts)


def silence(task: Task, now: datetime) -> float:
    """Return the seconds since a running task last reported progress; 0 if that is unknown."""
    if task.status != Status.RUNNING or task.progress_at is None:
        return 0.0
    return max(0.0, (aware(now) - aware(task.progress_at)).total_seconds())


def time_left(task: Task, words: Mapping[str, str], now: datetime) -> str:
    """Estimate how much longer a running task runs, or return for how long it was silent.

    The estimate is by the average speed up to the last report, so it falls while nothing is
    reported. Matches the script's `timeLeft`.
    """
    ran, value = elapsed(task, now), task.progress
    if task.status != Status.RUNNING or ran is None or task.cancel_requested_at:
        return ""
    silent = silence(task, now)
    before = ran - silent
    if silent >= min(max(before * STALLED_PART, STALLED_LEAST), STALLED_MOST):
        return words["stalled"].format(duration=duration(silent, words))
    if value is None or ran < ESTIMATE_AFTER or not ESTIMATE_FROM <= value < 1:
        return ""
    seconds = max(0.0, max(before, ESTIMATE_AFTER) * (1 - value) / value - silent)
    for unit, length, least in (
        ("left_days", 86_400, 172_800),
        ("left_hours", 3_600, 7_200),
        ("left_minutes", 60, 90),
    ):
        if seconds >= least:
            return words[unit].format(count=math.floor(seconds / length + 0.5))
    return words["left_seconds"].format(count=5 * max(1, math.ceil(seconds / 5)))


def result(task: Task) -> str:
    """Return the result of a task as text: a string as it is, anything else as indented JSON."""
    if task.result is None or task.status != Status.COMPLETED:
        return ""
    if isinstance(task.result, str):
        return clipped(task.result, RESULT_SHOWN)
    return clipped(json.dumps(task.result, indent=2, ensure_ascii=False), RESULT_SHOWN)


def error(task: Task) -> str:
    """Return why a task failed, in words for its owner. Staff see more in the admin."""
    return TaskError.public(task.public_error).message if task.error_type else ""
