"""What operators may do to tasks: its name, who may, when it can be, and what is said of it."""

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
    name: str
    label: _StrPromise
    #: What it is called in the menu of the list.
    of_many: _StrPromise
    #: What became of so many.
    past: Callable[[int], str]
    #: What is asked before it is done to so many, and the button that says yes.
    question: Callable[[int], str]
    sure: _StrPromise
    #: The statuses in which it can be done.
    sources: frozenset[Status]
    allowed: Callable[[User, Task], bool]
    do: Callable[[UUID, User], Any]
    #: What became of it, from what `do` returned: for the admin's log, one of TOLD.
    told: Callable[[Any], str]
    #: The same for whoever did it.
    said: Callable[[Any], str]
    flag: int = CHANGE
    #: Whether to ask before it is done to tasks that somebody selected one by one.
    asks: bool = True

    def possible(self, tasks: QuerySet[Task], asked: datetime) -> QuerySet[Task]:
        """Those of the tasks to which it could be done when somebody was asked, and still can.

        What came since is not what they agreed to: tasks that were made, or that ended.
        """
        tasks = tasks.filter(status__in=sorted(self.sources))
        came = "finished_at" if self.sources <= TERMINAL else "created_at"
        tasks = unindexed(tasks, came, lte=asked)
        return tasks.filter(retried_as=None) if self.name == "retry" else tasks


#: What is said of a deed.
ASKED, CANCELLED, RETRIED, REMOVED = TOLD = (
    gettext_noop("Asked to stop."),
    gettext_noop("Cancelled."),
    gettext_noop("Retried as task %(id)s."),
    gettext_noop("Deleted with its history."),
)


def _told_of_cancel(info: TaskInfo) -> str:
    return _(ASKED) if info.status == Status.RUNNING else _(CANCELLED)


def _told_of_retry(started: TaskStartResponse) -> str:
    return _(RETRIED) % {"id": started.task_id}


CANCEL = Action(
    name="cancel",
    label=gettext_lazy("Cancel"),
    of_many=gettext_lazy("Cancel selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was cancelled or asked to stop.",
        "%(count)s tasks were cancelled or asked to stop.",
        count,
    ),
    question=lambda count: ngettext(
        "Cancel this task? If it is running, it will be asked to stop.",
        "Cancel these tasks? Running tasks will be asked to stop.",
        count,
    ),
    sure=gettext_lazy("Yes, cancel"),
    sources=UNFINISHED,
    allowed=may_cancel,
    do=lambda task_id, user: task_service.cancel_task(task_id, by=user),
    told=_told_of_cancel,
    said=lambda info: _("Stopping…") if info.status == Status.RUNNING else _(CANCELLED),
)

RETRY = Action(
    name="retry",
    label=gettext_lazy("Retry"),
    of_many=gettext_lazy("Retry selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was retried.", "%(count)s tasks were retried.", count
    ),
    question=lambda count: ngettext(
        "Retry this task with the same parameters?",
        "Retry these tasks with the same parameters?",
        count,
    ),
    sure=gettext_lazy("Yes, retry"),
    sources=RETRIABLE,
    allowed=may_retry,
    do=lambda task_id, user: task_service.retry_task(task_id, by=user),
    told=_told_of_retry,
    said=lambda _started: _("Retried."),
    # A retry harms nothing, and its result is another task.
    asks=False,
)

REMOVE = Action(
    name="remove",
    label=pgettext_lazy("tasks_app", "Delete"),
    of_many=gettext_lazy("Delete selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was deleted with its history.",
        "%(count)s tasks were deleted with their history.",
        count,
    ),
    question=lambda count: ngettext(
        "Delete this task and its history? This cannot be undone.",
        "Delete these tasks and their history? This cannot be undone.",
        count,
    ),
    sure=gettext_lazy("Yes, delete"),
    sources=TERMINAL,
    allowed=may_remove,
    do=lambda task_id, _user: task_service.remove_completed_task(task_id),
    told=lambda _nothing: _(REMOVED),
    said=lambda _nothing: _(REMOVED),
    flag=DELETION,
)

ACTIONS = {action.name: action for action in (CANCEL, RETRY, REMOVE)}


def write_log(action: Action, user: User, done: Iterable[Done[Any]]) -> None:
    """Write to the admin's log who did this to which task: an entry for each.

    Untranslated: whoever reads it reads it in their own language, by `retold`.
    """
    content_type = ContentType.objects.get_for_model(Task)
    with translation.override(None):
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=cast(Any, user.pk),
                content_type=content_type,
                object_id=str(one.task.pk),
                object_repr=str(one.task)[:200],
                action_flag=action.flag,
                change_message=action.told(one.outcome),
            )
            for one in done
        )


def retold(message: str) -> str:
    """Translate what `write_log` wrote; return anything else as it is."""
    for told in TOLD:
        pattern = re.escape(told).replace(re.escape("%(id)s"), "(?P<id>.+)")
        if match := re.fullmatch(pattern, message):
            return _(told) % match.groupdict()
    return message


def sentences(action: Action, summary: Summary, most: int | None = None) -> list[tuple[bool, str]]:
    """Return what to tell about many tasks: whether it is good news, and the words.

    `most` is how many tasks one request changes, if more were selected.
    """
    said = []
    if summary.done:
        said.append((True, action.past(summary.done) % {"count": summary.done}))
    if refused := sum(summary.refused.values()):
        found = summary.refused.most_common()
        reasons = "; ".join(
            f"{reason(error, status)} ({count})" if len(found) > 1 else reason(error, status)
            for (error, status), count in found
        )
        text = ngettext(
            "Skipped %(count)s task: %(reasons)s.",
            "Skipped %(count)s tasks: %(reasons)s.",
            refused,
        )
        said.append((False, text % {"count": refused, "reasons": reasons}))
    if summary.left:
        text = ngettext(
            "Stopped after %(seconds)s s with %(count)s task left. Run it again to continue.",
            "Stopped after %(seconds)s s with %(count)s tasks left. Run it again to continue.",
            summary.left,
        )
        said.append((False, text % {"count": summary.left, "seconds": round(SECONDS)}))
    if most is not None:
        text = _("Stopped after %(most)s tasks, and there are more. Run it again to continue.")
        said.append((False, text % {"most": most}))
    return said or [(False, _("None of these tasks can be changed this way."))]
