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
from django.utils.translation import gettext_lazy, gettext_noop, ngettext

from tasks_app.admin.stretch import unindexed
from tasks_app.bulk import Done, Summary
from tasks_app.models import Task
from tasks_app.permissions import may_cancel, may_remove, may_retry
from tasks_app.refusals import reason
from tasks_app.schemas import TaskInfo, TaskStartResponse
from tasks_app.service import task_service
from tasks_app.states import RETRIABLE, TERMINAL, UNFINISHED, Status

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    from tasks_app.permissions import User


@dataclass(frozen=True)
class Act:
    name: str
    label: _StrPromise
    #: What it is called in the menu of the list.
    of_many: _StrPromise
    #: The verb's past, one and many.
    past: Callable[[int], str]
    question: _StrPromise
    #: The statuses in which it can be done.
    sources: frozenset[Status]
    allowed: Callable[[User, Task], bool]
    do: Callable[[UUID, User], Any]
    #: What became of it, from what `do` returned; one of TOLD.
    told: Callable[[Any], str]
    flag: int = CHANGE

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
    gettext_noop("Removed with its history."),
)


def _told_of_cancel(info: TaskInfo) -> str:
    return _(ASKED) if info.status == Status.RUNNING else _(CANCELLED)


def _told_of_retry(started: TaskStartResponse) -> str:
    return _(RETRIED) % {"id": started.task_id}


CANCEL = Act(
    name="cancel",
    label=gettext_lazy("Cancel"),
    of_many=gettext_lazy("Cancel selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was cancelled or asked to stop.",
        "%(count)s tasks were cancelled or asked to stop.",
        count,
    ),
    question=gettext_lazy("Cancel these tasks? Those that run are asked to stop."),
    sources=UNFINISHED,
    allowed=may_cancel,
    do=lambda task_id, user: task_service.cancel_task(task_id, by=user),
    told=_told_of_cancel,
)

RETRY = Act(
    name="retry",
    label=gettext_lazy("Retry"),
    of_many=gettext_lazy("Retry selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was started anew.", "%(count)s tasks were started anew.", count
    ),
    question=gettext_lazy("Start these tasks anew, with the same parameters?"),
    sources=RETRIABLE,
    allowed=may_retry,
    do=lambda task_id, user: task_service.retry_task(task_id, by=user),
    told=_told_of_retry,
)

REMOVE = Act(
    name="remove",
    label=gettext_lazy("Remove"),
    of_many=gettext_lazy("Remove selected tasks"),
    past=lambda count: ngettext(
        "%(count)s task was removed with its history.",
        "%(count)s tasks were removed with their history.",
        count,
    ),
    question=gettext_lazy("Remove these tasks with their history? That cannot be undone."),
    sources=TERMINAL,
    allowed=may_remove,
    do=lambda task_id, _user: task_service.remove_completed_task(task_id),
    told=lambda _nothing: _(REMOVED),
    flag=DELETION,
)

ACTS = {act.name: act for act in (CANCEL, RETRY, REMOVE)}


def write_log(act: Act, user: User, done: Iterable[Done[Any]]) -> None:
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
                action_flag=act.flag,
                change_message=act.told(one.outcome),
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


def sentences(act: Act, summary: Summary, most: int | None = None) -> list[tuple[bool, str]]:
    """Say what became of many: whether it is good news, and the words.

    `most` is how many were taken on, where there are more than that.
    """
    said = []
    if summary.done:
        said.append((True, act.past(summary.done) % {"count": summary.done}))
    if refused := sum(summary.refused.values()):
        reasons = "; ".join(
            f"{reason(error, status)} ({count})"
            for (error, status), count in summary.refused.most_common()
        )
        text = ngettext(
            "%(count)s task was left as it is: %(reasons)s.",
            "%(count)s tasks were left as they are: %(reasons)s.",
            refused,
        )
        said.append((False, text % {"count": refused, "reasons": reasons}))
    if summary.left:
        text = ngettext(
            "Time was over before %(count)s more. Do it again for the rest.",
            "Time was over before %(count)s more. Do it again for the rest.",
            summary.left,
        )
        said.append((False, text % {"count": summary.left}))
    if most is not None:
        text = _(
            "No more than %(most)s are done at once, and there are more. Do it again for them."
        )
        said.append((False, text % {"most": most}))
    return said or [(False, _("There was nothing to do: no task is in a state that allows it."))]
