"""Who may do what to which task. Every door asks here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks_app.models import Task

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser
    from django.contrib.auth.models import User as AuthUser

    #: Any user model with permissions; these two stand for it in annotations.
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


def _owns(user: User, task: Task) -> bool:
    return user.is_authenticated and user.is_active and task.owner_id == user.pk


def _may(user: User, action: str) -> bool:
    return user.is_active and user.has_perm(f"tasks_app.{action}_task")
