"""Who may do what through which door: every role, every action, every URL.

The task is the owner's. Where an action changes something, it does so for those alone whom the
table lets pass; for all others everything stays as it was.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, reverse

from tasks_app import urls as pages
from tasks_app.api import router
from tasks_app.api import urls as api
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tests.api.tasks import Ping
from tests.api.test_streams import first, scope
from tests.rows import saved, snapshot, worker

pytestmark = pytest.mark.django_db(transaction=True)

#: Each has nothing but what is said here. Staff come into the admin, and nobody else does.
ROLES: dict[str, dict[str, Any]] = {
    "nobody": {},
    "inactive": {"is_active": False, "is_superuser": True, "is_staff": True},
    "stranger": {},
    "owner": {},
    "viewer": {"is_staff": True, "may": "view_task"},
    "canceller": {"is_staff": True, "may": "cancel_task"},
    "retrier": {"is_staff": True, "may": "retry_task"},
    "remover": {"is_staff": True, "may": "delete_task"},
    "starter": {"is_staff": True, "may": "start_task"},
    "root": {"is_staff": True, "is_superuser": True},
}

#: Door, method or action, name of the URL, the status of the task beforehand; and what each role is
#: answered, in their order: an asterisk where the task is in it, an exclamation mark where
#: something was changed. 302 without one leads to the log-in, or away from what is not there.
TABLE = """
api    GET             task_list         pending   401  401  200  200* 200* 200  200  200  200  200*
api    POST            task_list         pending   401  401  403  403  403  403  403  403  202! 202!
api    GET             task              pending   401  401  404  200* 200* 404  404  404  404  200*
api    DELETE          task              completed 401  401  404  204! 403  404  404  204! 404  204!
api    GET             task_info         pending   401  401  404  200* 200* 404  404  404  404  200*
api    GET             task_events       pending   401  401  404  200  200  404  404  404  404  200
api    POST            task_cancel       pending   401  401  404  200! 403  200! 404  404  404  200!
api    POST            task_retry        failed    401  401  404  403  403  404  202! 404  404  202!
api    GET             tasks_app_stream  pending   401  401  404  200* 200* 404  404  404  404  200*
api    GET             tasks_app_streams pending   401  401  404  200* 200* 404  404  404  404  200*
pages  GET             task              pending   302  302  404  200* 200* 404  404  404  404  200*
pages  GET             status            pending   404  404  404  200* 200* 404  404  404  404  200*
pages  GET             statuses          pending   403  403  200  200* 200* 200  200  200  200  200*
pages  POST            cancel            pending   404  404  404  200! 404  200! 404  404  404  200!
pages  POST            retry             failed    404  404  404  404  404  404  202! 404  404  202!
pages  GET             stream            pending   403  403  404  200* 200* 404  404  404  404  200*
pages  GET             streams           pending   403  403  404  200* 200* 404  404  404  404  200*
admin  GET             changelist        pending   302  302  302  302  200* 403  403  403  403  200*
admin  cancel_selected changelist        pending   302  302  302  302  200* 403  403  403  403  302!
admin  retry_selected  changelist        failed    302  302  302  302  200* 403  403  403  403  302!
admin  remove_selected changelist        completed 302  302  302  302  200* 403  403  403  403  302!
admin  GET             change            pending   302  302  302  302  200* 403  403  403  403  200*
admin  POST            change            pending   302  302  302  302  405  405  405  405  405  405
admin  GET             history           pending   302  302  302  302  200* 302  302  302  302  200*
admin  GET             delete            completed 302  302  302  302  403  404  404  404  404  200*
admin  POST            delete            completed 302  302  302  302  403  404  404  404  404  302!
admin  POST            cancel            pending   302  302  302  302  403  404  404  404  404  302!
admin  POST            retry             failed    302  302  302  302  403  404  404  404  404  302!
admin  POST            remove            completed 302  302  302  302  403  404  404  404  404  302!
admin  GET             live              pending   302  302  302  302  200* 403  403  403  403  200*
admin  GET             overview          pending   302  302  302  302  200  403  403  403  403  200
admin  GET             overview_part     pending   302  302  302  302  200  403  403  403  403  200
admin  GET             start             pending   302  302  302  302  200  403  403  403  200  200
admin  GET             start_form        pending   302  302  302  302  404  404  404  404  200  200
admin  POST            start_form        pending   302  302  302  302  404  404  404  404  302! 302!
worker GET             changelist        pending   302  302  302  302  403  403  403  403  403  200
worker GET             add               pending   302  302  302  302  403  403  403  403  403  403
worker POST            add               pending   302  302  302  302  403  403  403  403  403  403
worker GET             change            pending   302  302  302  302  403  403  403  403  403  200
worker POST            change            pending   302  302  302  302  403  403  403  403  403  403
worker GET             history           pending   302  302  302  302  403  403  403  403  403  200
worker GET             delete            pending   302  302  302  302  403  403  403  403  403  403
worker POST            delete            pending   302  302  302  302  403  403  403  403  403  403
"""

#: Who is staff in other ways: the admin asks for the permission to view, and for that of the act.
STAFF: dict[str, dict[str, Any]] = {
    "viewer and canceller": {"is_staff": True, "may": "view_task cancel_task"},
    "viewer and retrier": {"is_staff": True, "may": "view_task retry_task"},
    "viewer and remover": {"is_staff": True, "may": "view_task delete_task"},
    "viewer and starter": {"is_staff": True, "may": "view_task start_task"},
    "viewer and owner": {"is_staff": True, "may": "view_task", "owns": True},
    "viewer of workers": {"is_staff": True, "may": "view_worker"},
}

#: The same of them, at the admin's doors.
TABLE_OF_STAFF = """
admin  GET             changelist        pending   200* 200* 200* 200* 200* 403
admin  cancel_selected changelist        pending   302! 302  302  200* 200* 403
admin  retry_selected  changelist        failed    302  302! 302  200* 200* 403
admin  remove_selected changelist        completed 302  302  302! 200* 200* 403
admin  GET             change            pending   200* 200* 200* 200* 200* 403
admin  POST            change            pending   405  405  405  405  405  405
admin  GET             history           pending   200* 200* 200* 200* 200* 302
admin  GET             delete            completed 403  403  200* 403  200* 404
admin  POST            delete            completed 403  403  302! 403  302! 404
admin  POST            cancel            pending   302! 403  403  403  302! 404
admin  POST            retry             failed    403  302! 403  403  403  404
admin  POST            remove            completed 403  403  302! 403  302! 404
admin  GET             live              pending   200* 200* 200* 200* 200* 403
admin  GET             overview          pending   200  200  200  200  200  403
admin  GET             overview_part     pending   200  200  200  200  200  403
admin  GET             start             pending   200  200  200  200  200  403
admin  GET             start_form        pending   404  404  404  200  404  404
admin  POST            start_form        pending   404  404  404  302! 404  404
worker GET             changelist        pending   403  403  403  403  403  200
worker GET             add               pending   403  403  403  403  403  403
worker POST            add               pending   403  403  403  403  403  403
worker GET             change            pending   403  403  403  403  403  200
worker POST            change            pending   403  403  403  403  403  403
worker GET             history           pending   403  403  403  403  403  200
worker GET             delete            pending   403  403  403  403  403  403
worker POST            delete            pending   403  403  403  403  403  403
"""

#: Streams of all that one owns, and of all there is: the query in place of a method.
TABLE_OF_STREAMS = """
api    mine=1          tasks_app_streams pending   401  401  200  200* 200  200  200  200  200  200
api    all=1           tasks_app_streams pending   401  401  404  404  200* 404  404  404  404  200*
pages  mine=1          streams           pending   403  403  200  200* 200  200  200  200  200  200
pages  all=1           streams           pending   403  403  404  404  200* 404  404  404  404  200*
"""

#: Owners who are something more, each with a task of their own, which opts in to be started.
OWNERS: dict[str, dict[str, Any]] = {
    "who may start it": {"may": "start_task", "owns": True},
    "of the staff": {"is_staff": True, "owns": True},
}

#: The same of them, at the doors that owners come by.
TABLE_OF_OWNERS = """
api    GET             task_list         pending   200* 200*
api    POST            task_list         pending   202! 403
api    GET             task              pending   200* 200*
api    DELETE          task              completed 204! 204!
api    GET             task_info         pending   200* 200*
api    GET             task_events       pending   200  200
api    POST            task_cancel       pending   200! 200!
api    POST            task_retry        failed    202! 403
api    GET             tasks_app_stream  pending   200* 200*
api    GET             tasks_app_streams pending   200* 200*
pages  GET             task              pending   200* 200*
pages  GET             status            pending   200* 200*
pages  GET             statuses          pending   200* 200*
pages  POST            cancel            pending   200! 200!
pages  POST            retry             failed    202! 404
pages  GET             stream            pending   200* 200*
pages  GET             streams           pending   200* 200*
"""

#: URLs that tell nothing of anybody's task.
OF_NO_TASK = {
    "openapi-json": "what the API is",
    "openapi-view": "a page about it",
    "api-root": "shadowed by the list",
    "tasks_app_task_add": "tasks are started, not added: refused to all",
}

LINES = [line.split() for line in TABLE.strip().splitlines()]
LINES_OF_STAFF = [line.split() for line in TABLE_OF_STAFF.strip().splitlines()]
LINES_OF_STREAMS = [line.split() for line in TABLE_OF_STREAMS.strip().splitlines()]
LINES_OF_OWNERS = [line.split() for line in TABLE_OF_OWNERS.strip().splitlines()]
NAMESPACES = {"api": "tasks_app_api", "pages": "tasks_app", "admin": "admin", "worker": "admin"}
PREFIX = {"api": "", "pages": "", "admin": "tasks_app_task_", "worker": "tasks_app_worker_"}
#: Of the admin's list, posted in place of a method.
ACTIONS = {"cancel_selected", "retry_selected", "remove_selected"}


def users(roles: dict[str, dict[str, Any]]) -> dict[str, User | None]:
    found: dict[str, User | None] = {"nobody": None}
    for role, fields in {**roles, "owner": ROLES["owner"]}.items():
        if role == "nobody":
            continue
        own = {name: value for name, value in fields.items() if name not in ("may", "owns")}
        found[role] = user = User.objects.create(username=role, **own)
        user.user_permissions.set(
            Permission.objects.filter(
                content_type__app_label="tasks_app", codename__in=fields.get("may", "").split()
            )
        )
    return found


def url_of(door: str, name: str, task: Task) -> str:
    view = f"{NAMESPACES[door]}:{PREFIX[door]}{name}"
    if name == "start_form":
        return reverse(view, args=[Ping.name()])
    try:
        return reverse(view)
    except NoReverseMatch:
        return reverse(view, args=[task.worker_id if door == "worker" else task.pk])


def answer(user: User | None, door: str, method: str, name: str, task: Task) -> str:
    """What a request is answered, as the table has it."""
    url = url_of(door, name, task)
    if name.endswith(("stream", "streams")):
        query = method if "=" in method else f"task={task.pk}" if name.endswith("s") else ""
        status, _, body = first(scope(user, url, query))
        return told(status, shown=str(task.pk) in body.decode())
    client = Client()
    if user is not None:
        client.force_login(user)
    before = everything()
    verb = "post" if method in ACTIONS else method.lower()
    response: Any = getattr(client, verb)(url, **sent(door, method, name, task))
    if method in ACTIONS and response.status_code == 200:
        # It asks again before it acts.
        again = sent(door, method, name, task)["data"] | {"confirmed": "yes"}
        response = client.post(url, again)
    shown = str(task.pk) in response.content.decode()
    return told(response.status_code, shown=shown, changed=everything() != before)


def everything() -> tuple[Any, ...]:
    return *snapshot(), list(Worker.objects.order_by("pk").values())


def sent(door: str, method: str, name: str, task: Task) -> dict[str, Any]:
    """What goes with the request."""
    if (door, method, name) == ("api", "POST", "task_list"):
        return {"data": json.dumps({"task": Ping.name()}), "content_type": "application/json"}
    if method in ACTIONS:
        return {"data": {"action": method, "_selected_action": str(task.pk)}}
    if (door, method) == ("admin", "POST") and name in ("cancel", "remove"):
        return {"data": {"confirmed": "yes"}}  # It has been asked.
    if door in ("admin", "worker"):
        return {"data": {"_ids": str(task.pk)} if name == "live" else {}}
    data = {"task": str(task.pk)} if name == "statuses" else {}
    return {"data": data, "headers": {"Accept": "application/json"}}


def told(status: int, shown: bool, changed: bool = False) -> str:
    return f"{status}{'!' if changed else '*' if shown and status == 200 else ''}"


@pytest.mark.parametrize("line", [*LINES, *LINES_OF_STREAMS], ids=lambda line: "-".join(line[:3]))
def test_each_role_is_answered_as_the_table_says(line: list[str]) -> None:
    answers(line, ROLES)


@pytest.mark.parametrize("line", LINES_OF_STAFF, ids=lambda line: "-".join(line[:3]))
def test_staff_are_answered_as_their_table_says(line: list[str]) -> None:
    answers(line, STAFF)


@pytest.mark.parametrize("line", LINES_OF_OWNERS, ids=lambda line: "-".join(line[:3]))
def test_owners_are_answered_as_their_table_says(line: list[str]) -> None:
    answers(line, OWNERS, Ping.name())


@pytest.mark.parametrize(
    "line",
    [line for line in [*LINES, *LINES_OF_STREAMS] if line[0] in ("api", "pages")],
    ids=lambda line: "-".join(line[:3]),
)
def test_what_nobody_owns_is_a_strangers_to_all(line: list[str]) -> None:
    """As where its owner's account was removed; to operators it is like any other."""
    door, method, name, status, *expected = line
    people, told_of = users(ROLES), dict(zip(ROLES, expected, strict=True))
    for role in ("nobody", "owner", "viewer", "canceller", "retrier", "remover"):
        task = saved(Status(status), name="tests.tasks.Noop")
        found = answer(people[role], door, method, name, task)
        assert found == told_of["stranger" if role == "owner" else role], role


def answers(
    line: list[str], roles: dict[str, dict[str, Any]], of: str = "tests.tasks.Noop"
) -> None:
    door, method, name, status, *expected = line
    people, by = users(roles), worker()
    found = {}
    for role, fields in roles.items():
        owner = people[role if fields.get("owns") else "owner"]
        task = saved(Status(status), name=of, owner=owner, worker=by)
        found[role] = answer(people[role], door, method, name, task)
    assert found == dict(zip(roles, expected, strict=True))


def test_the_table_leaves_out_no_url() -> None:
    doors: dict[str, list[Any]] = {
        "api": api.urlpatterns,
        "pages": pages.urlpatterns,
        "admin": admin.site.get_model_admin(Task).get_urls(),
        "worker": admin.site.get_model_admin(Worker).get_urls(),
    }
    for door, patterns in doors.items():
        names = {one.name for one in patterns if isinstance(one, URLPattern) and one.name}
        listed = {PREFIX[door] + name for told_of, _, name, *_ in LINES if told_of == door}
        assert listed == names - OF_NO_TASK.keys(), door
    admins = [line[:4] for line in LINES if line[0] in ("admin", "worker")]
    assert [line[:4] for line in LINES_OF_STAFF] == admins
    others = [line[:4] for line in LINES if line[0] in ("api", "pages")]
    assert [line[:4] for line in LINES_OF_OWNERS] == others


def test_the_table_leaves_out_no_operation_and_no_action() -> None:
    operations = {
        (method, operation.url_name)
        for view in router.path_operations.values()
        for operation in view.operations
        for method in operation.methods
    }
    assert operations == {(method, name) for door, method, name, *_ in LINES if door == "api"}
    assert set(admin.site.get_model_admin(Task).actions) == ACTIONS


def test_roles_have_each_permission_alone_and_beside_that_to_view() -> None:
    """Otherwise one might stand for another, and nobody would see it."""
    named = {fields["may"] for fields in (ROLES | STAFF).values() if "may" in fields}
    codenames = Permission.objects.filter(
        content_type__app_label="tasks_app", content_type__model="task"
    ).values_list("codename", flat=True)
    # Nothing asks for these two of Django's: tasks are neither added nor changed by hand.
    alone = set(codenames) - {"add_task", "change_task"}
    beside = {f"view_task {codename}" for codename in alone - {"view_task"}}
    assert named == alone | beside | {"view_worker"}
