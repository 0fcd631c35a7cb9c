"""The actions that operators can take on tasks, and the texts and log entries of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import QuerySet
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop, ngettext, pgettext_lazy

from tasks_app.admin.index_order import unindexed
from tasks_app.models import Task
from tasks_app.permissions import may_cancel, may_remove, may_retry
from tasks_app.schemas import TaskInfo, TaskStartResponse
from tasks_app.service import task_service
from tasks_app.states import RETRIABLE, TERMINAL, UNFINISHED, Status
from tasks_app.store.bulk import SECONDS, Done, Summary
from tasks_app.web.refusals import reason

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    from tasks_app.permissions import User


@dataclass(frozen=True)
class Action:
    """One action, on a single task or on many."""

    name: str
    label: _StrPromise
    #: The label in the list's menu of bulk actions.
    menu_label: _StrPromise
    #: The message after a bulk action that changed this number of tasks.
    done_message: Callable[[int], str]
    #: The question before it changes this number of tasks, and the label of the button for yes.
    question: Callable[[int], str]
    confirm_label: _StrPromise
    #: The statuses that allow it.
    sources: frozenset[Status]
    allowed: Callable[[User, Task], bool]
    do: Callable[[UUID, User], Any]
    #: The text for the admin's log, from what `do` returned. One of LOG_MESSAGES.
    log_message: Callable[[Any], str]
    #: The text for the user who took the action, from what `do` returned.
    message: Callable[[Any], str]
    #: The flag of the entry in the admin's log.
    flag: int = CHANGE
    #: If True, the user must confirm it for tasks that they selected one by one.
    needs_confirmation: bool = True

    def possible(self, tasks: QuerySet[Task], asked_at: datetime) -> QuerySet[Task]:
        """Return the tasks that it could change when the user was asked, and still can.

        The user did not agree to tasks that were created, or that ended, after that time.
        """
        tasks = tasks.filter(status__in=sorted(self.sources))
        column = "finished_at" if self.sources <= TERMINAL else "created_at"
        tasks = unindexed(tasks, column, lte=asked_at)
        return tasks.filter(retried_as=None) if self.name == "retry" else tasks


#: The texts of the admin's log.
STOP_REQUESTED, CANCELLED, RETRIED, REMOVED = LOG_MESSAGES = (
    gettext_noop("Requested cancellation."),
    gettext_noop("Cancelled."),
    gettext_noop("Retried as task %(id)s."),
    gettext_noop("Deleted with its history."),
)


def _log_of_cancel(info: TaskInfo) -> str:
    return _(STOP_REQUESTED) if info.status == Status.RUNNING else _(CANCELLED)


def _log_of_retry(started: TaskStartResponse) -> str:
    return _(RETRIED) % {"id": started.task_id}


CANCEL = Action(
    name="cancel",
    label=gettext_lazy("Cancel"),
    menu_label=gettext_lazy("Cancel selected tasks"),
    done_message=lambda count: ngettext(
        "%(count)s task was cancelled or asked to stop.",
        "%(count)s tasks were cancelled or asked to stop.",
        count,
    ),
    question=lambda count: ngettext(
        "Cancel this task? If it is running, it will be asked to stop.",
        "Cancel these tasks? Running tasks will be asked to stop.",
        count,
    ),
    confirm_label=gettext_lazy("Yes, cancel"),
    sources=UNFINISHED,
    allowed=may_cancel,
    do=lambda task_id, user: task_service.cancel_task(task_id, by=user),
    log_message=_log_of_cancel,
    message=lambda info: _("Stopping…") if info.status == Status.RUNNING else _(CANCELLED),
)

RETRY = Action(
    name="retry",
    label=gettext_lazy("Retry"),
    menu_label=gettext_lazy("Retry selected tasks"),
    done_message=lambda count: ngettext(
        "%(count)s task was retried.", "%(count)s tasks were retried.", count
    ),
    question=lambda count: ngettext(
        "Retry this task with the same parameters?",
        "Retry these tasks with the same parameters?",
        count,
    ),
    confirm_label=gettext_lazy("Yes, retry"),
    sources=RETRIABLE,
    allowed=may_retry,
    do=lambda task_id, user: task_service.retry_task(task_id, by=user),
    log_message=_log_of_retry,
    message=lambda _started: _("Retried."),
    # A retry changes nothing that exists: it starts another task.
    needs_confirmation=False,
)

REMOVE = Action(
    name="remove",
    label=pgettext_lazy("tasks_app", "Delete"),
    menu_label=gettext_lazy("Delete selected tasks"),
    done_message=lambda count: ngettext(
        "%(count)s task was deleted with its history.",
        "%(count)s tasks were deleted with their history.",
        count,
    ),
    question=lambda count: ngettext(
        "Delete this task and its history? This cannot be undone.",
        "Delete these tasks and their history? This cannot be undone.",
        count,
    ),
    confirm_label=gettext_lazy("Yes, delete"),
    sources=TERMINAL,
    allowed=may_remove,
    do=lambda task_id, _user: task_service.remove_completed_task(task_id),
    log_message=lambda _nothing: _(REMOVED),
    message=lambda _nothing: _(REMOVED),
    flag=DELETION,
)

ACTIONS = {action.name: action for action in (CANCEL, RETRY, REMOVE)}


def write_log(action: Action, user: User, done: Iterable[Done[Any]]) -> None:
    """Write one entry for each task to the admin's log.

    The text is not translated: `translated` does that in the language of the reader.
    """
    content_type = ContentType.objects.get_for_model(Task)
    with translation.override(None):
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=cast(Any, user.pk),
                content_type=content_type,
                object_id=str(change.task.pk),
                object_repr=str(change.task)[:200],
                action_flag=action.flag,
                change_message=action.log_message(change.outcome),
            )
            for change in done
        )


def translated(message: str) -> str:
    """Translate a text that `write_log` wrote; return any other text as it is."""
    for text in LOG_MESSAGES:
        pattern = re.escape(text).replace(re.escape("%(id)s"), "(?P<id>.+)")
        if match := re.fullmatch(pattern, message):
            return _(text) % match.groupdict()
    return message


def messages_about(
    action: Action, summary: Summary, limit: int | None = None
) -> list[tuple[bool, str]]:
    """Return the messages after a bulk action: whether each reports success, and its text.

    `limit` is the most tasks that one request changes. Give it only if more were selected.
    """
    texts = []
    if summary.done:
        texts.append((True, action.done_message(summary.done) % {"count": summary.done}))
    if refused := sum(summary.refused.values()):
        counts = summary.refused.most_common()
        reasons = "; ".join(
            f"{reason(error, status)} ({count})" if len(counts) > 1 else reason(error, status)
            for (error, status), count in counts
        )
        text = ngettext(
            "Skipped %(count)s task: %(reasons)s.",
            "Skipped %(count)s tasks: %(reasons)s.",
            refused,
        )
        texts.append((False, text % {"count": refused, "reasons": reasons}))
    if summary.left:
        text = ngettext(
            "Stopped after %(seconds)s s with %(count)s task left. Run it again to continue.",
            "Stopped after %(seconds)s s with %(count)s tasks left. Run it again to continue.",
            summary.left,
        )
        texts.append((False, text % {"count": summary.left, "seconds": round(SECONDS)}))
    if limit is not None:
        text = _("Stopped after %(most)s tasks, and there are more. Run it again to continue.")
        texts.append((False, text % {"most": limit}))
    return texts or [(False, _("None of these tasks can be changed this way."))]
