"""Rules of who may do what to which task. Pages, the admin and the API ask here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks_app.exceptions import AlreadyRetried, DuplicateTask, IllegalTransition, UnknownTask
from tasks_app.models import Task
from tasks_app.models.querysets import holds
from tasks_app.tasks.base import BaseTask, resolve

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser
    from django.contrib.auth.models import User as AuthUser

    #: Any user model; these two stand for it in annotations.
    User = AuthUser | AnonymousUser


def may_view_all(user: User) -> bool:
    """Return whether a user may see the tasks of all users."""
    return _may(user, "view")


def may_view(user: User, task: Task) -> bool:
    """Return whether a user may see a task: their own, or any with `view_task`."""
    return _owns(user, task) or _may(user, "view")


def may_cancel(user: User, task: Task) -> bool:
    """Return whether a user may cancel a task: their own, or any with `cancel_task`."""
    return _owns(user, task) or _may(user, "cancel")


def may_start(user: User, task: type[BaseTask]) -> bool:
    """Return whether a user may start a class over HTTP: it opts in and names a permission."""
    return task.startable and user.is_active and holds(user, task.start_permission)


def may_retry(user: User, task: Task) -> bool:
    """Return whether a user may retry a task: any with `retry_task`, or their own.

    To retry their own, they must also be allowed to start its class.
    """
    return _may(user, "retry") or (_owns(user, task) and _may_start_again(user, task))


def may_remove(user: User, task: Task) -> bool:
    """Return whether a user may remove a task: their own, or any with `delete_task`."""
    return _owns(user, task) or _may(user, "delete")


def conflict_details(
    user: User,
    error: DuplicateTask | IllegalTransition | UnknownTask,
    retried: Task | None = None,
) -> dict[str, Any]:
    """Return what a user may know of a conflict that stopped a start or a retry.

    `detail` is the message; `task` is the conflicting task, if the user may see it. A user who
    starts a task has given the unique key, so the message may contain it. For a retry (`retried` is
    given), it may contain the key only if the user may see that task.
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
