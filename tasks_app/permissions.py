"""Who may do what to which task. Every door asks here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks_app.base import BaseTask, resolve
from tasks_app.exceptions import AlreadyRetried, DuplicateTask, IllegalTransition, UnknownTask
from tasks_app.models import Task
from tasks_app.querysets import holds

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser
    from django.contrib.auth.models import User as AuthUser

    #: Any user model; these two stand for it in annotations.
    User = AuthUser | AnonymousUser


def may_view_all(user: User) -> bool:
    """Whether a user may see everybody's tasks."""
    return _may(user, "view")


def may_view(user: User, task: Task) -> bool:
    """Whether a user may see a task: their own, or any by the `view_task` permission."""
    return _owns(user, task) or _may(user, "view")


def may_cancel(user: User, task: Task) -> bool:
    """Whether a user may cancel a task: their own, or any by the `cancel_task` permission."""
    return _owns(user, task) or _may(user, "cancel")


def may_start(user: User, task: type[BaseTask]) -> bool:
    """Whether a user may start tasks of a class over HTTP: it opts in, and names a permission."""
    return task.startable and user.is_active and holds(user, task.start_permission)


def may_retry(user: User, task: Task) -> bool:
    """Whether a user may retry a task: their own that they may start, or any by `retry_task`."""
    return _may(user, "retry") or (_owns(user, task) and _may_start_again(user, task))


def may_remove(user: User, task: Task) -> bool:
    """Whether a user may remove a task: their own, or any by the `delete_task` permission."""
    return _owns(user, task) or _may(user, "delete")


def told_of_conflict(
    user: User,
    error: DuplicateTask | IllegalTransition | UnknownTask,
    retried: Task | None = None,
) -> dict[str, Any]:
    """What a user is told of what kept a task from being started or retried.

    Its `detail`; and in `task` the one in the way, if they may see it. A start has named the unique
    key itself; that of a task that was to be retried is for those who may see the task.
    """
    detail, other = str(error), None
    if isinstance(error, AlreadyRetried):
        other = error.retried_as
    elif isinstance(error, DuplicateTask):
        other = error.task_id
        if retried is None or not may_view(user, retried):
            detail = error.without_key
    if other is None or not Task.primary.visible_to(user).filter(pk=other).exists():
        return {"detail": detail}
    return {"detail": detail, "task": str(other)}


def _may_start_again(user: User, task: Task) -> bool:
    try:
        return may_start(user, resolve(task.name))
    except UnknownTask:
        return False


def _owns(user: User, task: Task) -> bool:
    return user.is_authenticated and user.is_active and task.owner_id == user.pk


def _may(user: User, action: str) -> bool:
    return user.is_active and holds(user, f"tasks_app.{action}_task")
