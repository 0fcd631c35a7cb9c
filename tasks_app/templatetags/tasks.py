"""`{% load tasks %}`: tasks on a page, with their current state and live updates."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from django import template
from django.contrib.auth.models import AnonymousUser
from django.core.handlers.wsgi import WSGIRequest
from django.db.models import Prefetch, QuerySet, prefetch_related_objects
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.template import context_processors
from django.template.context import Context
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html

from tasks_app.conf import task_settings
from tasks_app.live.cursor import Cursor
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.permissions import may_cancel, may_retry
from tasks_app.states import RETRIABLE, EventType
from tasks_app.store.ledger import alias
from tasks_app.web import display
from tasks_app.web.words import WORDS

register = template.Library()

#: The forms in which a task can be shown, and the template of each.
FORMS = {
    "bar": "tasks_app/task_progress_bar.html",
    "compact": "tasks_app/task_progress_compact.html",
    "card": "tasks_app/task_progress_card.html",
}
#: A card shows this many of the newest log lines.
LOG_LINES = 5
#: A list shows at most this many tasks, unless the page sets a limit.
LIST_LENGTH = 20


@dataclass
class Page:
    """The state that all tags of one page share while it is rendered."""

    bars: int = 0
    #: Part of its element ids, because a fragment may be inserted into any other page.
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    has_assets: bool = False
    #: The cursor from which the page's stream continues, taken when a tag first needs it.
    since: str | None = None
    #: The text for tasks of a queue without a worker, by queue; empty for a queue with one.
    unserved: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context) -> Page:
        """Return the page that is being rendered.

        `render_context` has a frame for each template. The second frame, above the builtins, is
        that of the page itself: its loops, includes and blocks share it.
        """
        frame = cast(dict[str, Page], context.render_context.dicts[:2][-1])
        return frame.setdefault("tasks_app.page", cls())

    def brings_assets(self) -> bool:
        """Return whether the caller must add the assets: true once for each page."""
        is_first, self.has_assets = not self.has_assets, True
        return is_first

    def no_worker(self, task: Task, user: Any) -> str:
        """Return the text for a task that no worker takes. Reads the workers once per queue."""
        if not display.is_stalled(task, timezone.now()):
            return ""
        if task.queue not in self.unserved:
            texts = display.no_worker([task.queue], user)
            self.unserved[task.queue] = texts.get(task.queue, "")
        return self.unserved[task.queue]

    def moment(self) -> str:
        if self.since is None:
            self.since = resumable()
        return self.since


def resumable() -> str:
    """Return the cursor for a stream that opens with what is committed from now on.

    A row that is read after this may come again in that stream, but no change is missing.
    """
    return str(Cursor.now(alias()))


@register.simple_tag(takes_context=True)
def nonce(context: Context) -> str:
    """Return the `nonce` attribute of a script or style; empty if the request has none.

    Finds the nonce of Django 6 and of django-csp, whether or not their context processors ran.
    """
    request = context.get("request")
    value = context.get("csp_nonce")
    if value is None and request:
        value = getattr(request, "csp_nonce", None)
    if value is None and request and hasattr(context_processors, "csp"):  # Django 6
        value = context_processors.csp(request)["csp_nonce"]
    # Both nonces are false until they are used, so they cannot be tested by truth.
    return "" if value is None else format_html(' nonce="{}"', value)


@register.inclusion_tag("tasks_app/task_progress_assets.html", takes_context=True)
def task_assets(context: Context) -> dict[str, Any]:
    """Add the style and the script to a page that shows its first task later."""
    return {"first": Page.of(context).brings_assets(), **page_assets(context)}


@register.inclusion_tag("tasks_app/task_progress.html", takes_context=True)
def task_progress(
    context: Context,
    task: Task,
    *,
    form: str = "bar",
    label: str = "",
    url: str = "",
    cancel: bool | None = None,
    assets: bool = True,
) -> dict[str, Any]:
    """Show a task with its current state and live updates.

    `form` is one of FORMS. `label` replaces the task's name. `url` makes the name a link.
    `cancel` shows a button to cancel; if unset, every form but compact has one. Set it to False
    inside an HTML form, because HTML forbids nested forms. Set `assets=False` for a fragment of a
    page that has the assets already.
    """
    page = Page.of(context)
    page.bars += 1
    bar = progress_bar(
        task,
        request=context.get("request"),
        form=form,
        label=label,
        url=url,
        may_offer_cancel=form != "compact" if cancel is None else cancel,
        # Taken before the log is read, so that the stream misses no line.
        since=page.moment() if form == "card" else "",
        no_worker=page.no_worker,
    )
    first = assets and page.brings_assets()
    label_id = f"task-{page.token}-{page.bars}"
    return bar | {"first": first, "label_id": label_id} | (page_assets(context) if first else {})


@register.inclusion_tag("tasks_app/task_list.html", takes_context=True)
def task_list(
    context: Context,
    tasks: Iterable[Task] | None = None,
    *,
    limit: int | None = None,
    form: str = "bar",
    follow: bool | None = None,
) -> dict[str, Any]:
    """Show the newest tasks of the user, or the given tasks, each with a bar.

    With `follow`, tasks that the user starts later on any page are added to the list. If unset,
    the list follows when it shows the user's newest tasks.
    """
    page, request = Page.of(context), context.get("request")
    user = getattr(request, "user", AnonymousUser())
    follows = user.is_authenticated and (tasks is None if follow is None else follow)
    since = page.moment() if follows else ""
    rows = newest(user, tasks, limit, form)
    back = request.get_full_path() if request else ""
    return {
        **page_assets(context),
        "first": page.brings_assets(),
        "request": request,
        "form": form,
        "rows": [(row, display.page_url(row, back), created(row)) for row in rows],
        "follow": follows,
        "since": since,
        # New tasks must not make a page that is open for days grow without a limit.
        "limit": limit or (max(len(rows), LIST_LENGTH) if follows else 0),
    }


def newest(user: Any, tasks: Iterable[Task] | None, limit: int | None, form: str) -> list[Task]:
    """Return the tasks of a list with all data that their form shows, in few queries."""
    if tasks is None:
        # From the primary: the stream of later tasks continues from that database's cursor.
        own = Task.primary.visible_to(user).filter(owner_id=user.pk)
        tasks, limit = own.order_by("-created_at"), limit or LIST_LENGTH
    if isinstance(tasks, QuerySet):
        unused = ["params", "error_traceback", *([] if form == "card" else ["result"])]
        tasks = tasks.defer(*unused)[:limit]
    rows = list(tasks)[:limit]
    if form == "card":
        fetch_for_cards(rows)
    return rows


def fetch_for_cards(tasks: list[Task]) -> None:
    """Fetch the related rows that cards show, unless they were fetched before."""
    lines = TaskEvent.primary.filter(event_type=EventType.LOG).order_by("-id")[:LOG_LINES]
    prefetch_related_objects(
        tasks,
        Prefetch("events", lines, to_attr="newest_log_lines"),
        Prefetch("retried_as", Task.primary.all()),
    )


def progress_bar(
    task: Task,
    *,
    request: HttpRequest | None = None,
    form: str = "bar",
    label: str = "",
    url: str = "",
    may_offer_cancel: bool = True,
    since: str = "",
    no_worker: Callable[[Task, Any], str] | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the context of a task's template. Without a request it has no button to cancel.

    Raises TypeError if `task` is not a Task, and ValueError for an unknown form.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{{% task_progress %}} takes a Task, not {task!r} ({type(task).__name__}). Pass the "
            f"row itself, such as Task.objects.get(pk=…), and check the name of the variable."
        )
    if form not in FORMS:
        raise ValueError(f"{form!r} is not a form of a task. Choose one of {', '.join(FORMS)}.")
    now = now or timezone.now()
    words = {key: str(word) for key, word in WORDS.items()}
    user = getattr(request, "user", AnonymousUser())
    stalled = no_worker(task, user) if no_worker else ""
    ended = task.is_terminal
    cancelling = task.cancel_requested_at is not None and not ended
    cancel_url = csrf_token = None
    can_cancel = may_offer_cancel and not ended and not cancelling
    if can_cancel and request and may_cancel(user, task):
        # A page that is rendered without context processors has no token in its context.
        cancel_url, csrf_token = _url("cancel", task.pk), get_token(request)
    card = _card(task, request, user, words, now) if form == "card" else {}
    return {
        "form": form,
        "inside": FORMS[form],
        "task_id": str(task.pk),
        "status": str(task.status),
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "label": label or task.label,
        "url": url,
        # In a table, another cell shows the name; this one is for screen readers.
        "quiet": form == "compact" and not (label or url),
        "state": stalled or display.describe(task, words, now),
        "no_worker": stalled,
        "value": display.bar_value(task),
        "percent": display.percent(task, words),
        "text": display.text(task),
        "error": display.error(task),
        "started": aware(task.started_at).isoformat() if task.started_at else "",
        "wait": display.wait(task, now),
        "elapsed": display.elapsed(task, now),
        "silent": display.silence(task, now),
        "duration": display.time_taken(task, words, now),
        "ended": ended,
        "cancelling": cancelling,
        "live": _is_live(),
        "mine": user.is_authenticated and task.owner_id == user.pk,
        "since": since,
        "cancel_url": cancel_url,
        "csrf_token": csrf_token,
        "next": request.get_full_path() if request else "",
        **card,
    }


def _card(
    task: Task, request: HttpRequest | None, user: Any, words: dict[str, str], now: datetime
) -> dict[str, Any]:
    """Return the context that only a card needs."""
    fetch_for_cards([task])
    retriable = task.status in RETRIABLE
    retry_task = getattr(task, "retried_as", None) if retriable else None
    retry: dict[str, Any] = {}
    if request and retry_task is None and may_retry(user, task):
        # Rendered hidden, so that the script can show it when the task fails.
        retry = {"retry_url": _url("retry", task.pk), "csrf_token": get_token(request)}
    return {
        "attempts": display.attempts(task, words),
        "left": display.time_left(task, words, now),
        "log": task.newest_log_lines[::-1],  # type: ignore[attr-defined]
        "log_lines": LOG_LINES,
        "result": display.result(task),
        "retriable": retriable,
        "retried_as": display.page_url(retry_task) if retry_task else "",
        **retry,
    }


def created(task: Task) -> tuple[str, str]:
    """Return when a task was created: in ISO format, and as text with the time zone."""
    time = timezone.localtime(aware(task.created_at))
    text = f"{date_format(time, 'SHORT_DATETIME_FORMAT')} {time.tzname()}"
    return time.isoformat(), text


def page_assets(context: Context) -> dict[str, Any]:
    """Return the data for the page's script: URLs, limits and texts."""
    request = context.get("request")
    return {
        "nonce": nonce(context),
        "live": _is_live(),
        "streams_url": streams_url(request),
        "statuses_url": _url("statuses"),
        "max_tasks": task_settings().stream_max_tasks,
        "keepalive": task_settings().stream_keepalive_seconds,
        "words": json.dumps({key: str(word) for key, word in WORDS.items()}),
    }


def streams_url(request: HttpRequest | None) -> str:
    """Return the URL of the page's stream.

    Empty under WSGI and without `tasks_app.urls`: the page then polls.
    """
    return "" if isinstance(request, WSGIRequest) else _url("streams") or ""


def _is_live() -> bool:
    """Return whether the page needs the script. Without `tasks_app.urls` bars do not update."""
    return bool(_url("streams"))


def _url(name: str, *args: object) -> str | None:
    try:
        return reverse(f"tasks_app:{name}", args=args)
    except NoReverseMatch:
        return None
