"""Who may do what to which task: owners to their own, others by permission, action by action."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User

from tasks_app.models import Task
from tasks_app.permissions import may_cancel, may_view, may_view_all
from tests.rows import row, saved

pytestmark = pytest.mark.django_db


def someone(*codenames: str, **fields: Any) -> User:
    user = User.objects.create(username=f"user{User.objects.count()}", **fields)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="tasks_app", codename__in=codenames)
    )
    return User.objects.get(pk=user.pk)


def rights(user: User | AnonymousUser, task: Task) -> tuple[bool, bool, bool]:
    return may_view(user, task), may_cancel(user, task), may_view_all(user)


NONE = (False, False, False)


@pytest.mark.parametrize(
    ("codenames", "fields", "expected"),
    [
        ((), {}, NONE),
        ((), {"is_staff": True}, NONE),
        (("view_task",), {}, (True, False, True)),
        (("cancel_task",), {}, (False, True, False)),
        (("view_task", "cancel_task"), {"is_staff": True}, (True, True, True)),
        (("change_task", "delete_task", "add_task"), {"is_staff": True}, NONE),
        ((), {"is_superuser": True}, (True, True, True)),
        (("view_task", "cancel_task"), {"is_active": False}, NONE),
        ((), {"is_superuser": True, "is_active": False}, NONE),
    ],
)
@pytest.mark.parametrize("owned", [True, False])
def test_rights_to_what_is_not_ones_own(
    codenames: tuple[str, ...], fields: dict[str, Any], expected: tuple[bool, ...], owned: bool
) -> None:
    task = row(owner=someone() if owned else None)
    assert rights(someone(*codenames, **fields), task) == expected


def test_rights_to_ones_own() -> None:
    user = someone()
    assert rights(user, row(owner=user)) == (True, True, False)


def test_an_inactive_owner_has_no_rights() -> None:
    user = someone(is_active=False)
    assert rights(user, row(owner=user)) == NONE


@pytest.mark.parametrize("owned", [True, False])
def test_nobody_has_no_rights(owned: bool) -> None:
    """Not even to tasks that nobody owns."""
    task = row(owner=someone() if owned else None)
    assert rights(AnonymousUser(), task) == NONE


def test_what_one_may_view_is_what_one_sees_in_lists() -> None:
    users: list[User | AnonymousUser] = [
        someone(),
        someone("view_task"),
        someone("cancel_task"),
        someone(is_superuser=True),
        someone(is_active=False, is_superuser=True),
        AnonymousUser(),
    ]
    tasks = [saved(owner=user if isinstance(user, User) else None) for user in users]
    for user in users:
        listed = set(Task.objects.visible_to(user))
        assert listed == {task for task in tasks if may_view(user, task)}
