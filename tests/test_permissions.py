"""Rights to a task: owners have them, others need a permission for each action."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import models
from django.template import RequestContext, Template
from django.test import Client, RequestFactory

from tasks_app.models import Task
from tasks_app.permissions import may_cancel, may_view, may_view_all
from tests.rows import enqueued, row, saved

pytestmark = pytest.mark.django_db

JSON = {"Accept": "application/json"}


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
def test_rights_to_tasks_of_others(
    codenames: tuple[str, ...], fields: dict[str, Any], expected: tuple[bool, ...], owned: bool
) -> None:
    task = row(owner=someone() if owned else None)
    assert rights(someone(*codenames, **fields), task) == expected


def test_rights_to_own_tasks() -> None:
    user = someone()
    assert rights(user, row(owner=user)) == (True, True, False)


def test_inactive_owner_has_no_rights() -> None:
    user = someone(is_active=False)
    assert rights(user, row(owner=user)) == NONE


@pytest.mark.parametrize("owned", [True, False])
def test_anonymous_user_has_no_rights(owned: bool) -> None:
    """Not even to tasks without an owner."""
    task = row(owner=someone() if owned else None)
    assert rights(AnonymousUser(), task) == NONE


def test_lists_show_exactly_the_viewable_tasks() -> None:
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


# A user model without permissions.


class Person(AbstractBaseUser):
    """The minimal user model of Django's documentation."""

    username = models.CharField(max_length=150)

    class Meta:
        app_label = "tests"
        db_table = "auth_user"
        managed = False

    USERNAME_FIELD = "username"


class People(BaseBackend):
    def get_user(self, user_id: int) -> Person | None:
        return Person.objects.filter(pk=user_id).first()


def test_user_model_without_permissions_has_own_tasks(settings: Any, rf: RequestFactory) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.People"]
    own, other = enqueued(owner=someone()), enqueued(owner=someone())
    person = Person.objects.get(pk=own.owner_id)
    client = Client()
    client.force_login(person)
    for url in ("/tasks/{}/status/", "/tasks/status/?task={}", "/api/tasks/{}"):
        assert "tests.tasks.Noop" in client.get(url.format(own.pk)).content.decode()
        assert "tests.tasks.Noop" not in client.get(url.format(other.pk)).content.decode()
    assert "<task-progress" in _list_of(person, rf)
    response = client.post("/api/tasks/", {"task": "x"}, content_type="application/json")
    assert response.status_code == 403
    assert client.post(f"/tasks/{other.pk}/cancel/", headers=JSON).status_code == 404
    assert client.post(f"/tasks/{own.pk}/cancel/", headers=JSON).status_code == 200
    assert client.post(f"/tasks/{own.pk}/retry/", headers=JSON).status_code == 404
    assert client.delete(f"/api/tasks/{own.pk}").status_code == 204


def _list_of(person: Person, rf: RequestFactory) -> str:
    request = rf.get("/")
    request.user = person  # type: ignore[assignment]
    return Template("{% load tasks %}{% task_list %}").render(RequestContext(request))
