"""Permissions of every role, for every action and URL.

The task belongs to the role "owner". An action changes data only for the roles that the table
allows; for all others everything stays as it was.
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

# Permissions do not depend on the database.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

#: Each role has only the permissions listed here. Only staff can enter the admin.
ROLES: dict[str, dict[str, Any]] = {
    "anonymous": {},
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

#: Columns: door, method or action, URL name, the task's status before the request, and then the
#: response for each role in order. "*": the task is in the response. "!": something was changed. A
#: 302 without either redirects to the log-in, or away from a missing object.
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

#: Other staff roles: the admin requires the permission to view and the permission of the action.
STAFF: dict[str, dict[str, Any]] = {
    "viewer and canceller": {"is_staff": True, "may": "view_task cancel_task"},
    "viewer and retrier": {"is_staff": True, "may": "view_task retry_task"},
    "viewer and remover": {"is_staff": True, "may": "view_task delete_task"},
    "viewer and starter": {"is_staff": True, "may": "view_task start_task"},
    "viewer and owner": {"is_staff": True, "may": "view_task", "owns": True},
    "viewer of workers": {"is_staff": True, "may": "view_worker"},
}

#: The same requests to the admin, by those roles.
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

#: Streams of all own tasks and of all tasks. The query string replaces the method.
TABLE_OF_STREAMS = """
api    mine=1          tasks_app_streams pending   401  401  200  200* 200  200  200  200  200  200
api    all=1           tasks_app_streams pending   401  401  404  404  200* 404  404  404  404  200*
pages  mine=1          streams           pending   403  403  200  200* 200  200  200  200  200  200
pages  all=1           streams           pending   403  403  404  404  200* 404  404  404  404  200*
"""

#: Owners with one more property. Each has a task of their own whose class can be started over HTTP.
OWNERS: dict[str, dict[str, Any]] = {
    "who may start it": {"may": "start_task", "owns": True},
    "of the staff": {"is_staff": True, "owns": True},
}

#: The same requests by those roles, for the API and the pages.
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

#: URLs that show no task.
OF_NO_TASK = {
    "openapi-json": "the API's schema",
    "openapi-view": "the API's documentation page",
    "api-root": "never reached: the list has the same URL",
    "tasks_app_task_add": "refused to everybody: tasks are started, not added",
}

LINES = [check_outcomes.split() for check_outcomes in TABLE.strip().splitlines()]
LINES_OF_STAFF = [check_outcomes.split() for check_outcomes in TABLE_OF_STAFF.strip().splitlines()]
LINES_OF_STREAMS = [
    check_outcomes.split() for check_outcomes in TABLE_OF_STREAMS.strip().splitlines()
]
LINES_OF_OWNERS = [
    check_outcomes.split() for check_outcomes in TABLE_OF_OWNERS.strip().splitlines()
]
NAMESPACES = {"api": "tasks_app_api", "pages": "tasks_app", "admin": "admin", "worker": "admin"}
PREFIX = {"api": "", "pages": "", "admin": "tasks_app_task_", "worker": "tasks_app_worker_"}
#: Actions of the admin's list; the action replaces the method.
ACTIONS = {"cancel_selected", "retry_selected", "remove_selected"}


def users(roles: dict[str, dict[str, Any]]) -> dict[str, User | None]:
    found: dict[str, User | None] = {"anonymous": None}
    for role, fields in {**roles, "owner": ROLES["owner"]}.items():
        if role == "anonymous":
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


def outcome(user: User | None, door: str, method: str, name: str, task: Task) -> str:
    """Return the outcome of a request in the notation of the table."""
    url = url_of(door, name, task)
    if name.endswith(("stream", "streams")):
        query = method if "=" in method else f"task={task.pk}" if name.endswith("s") else ""
        status, _, body = first(scope(user, url, query))
        return notation(status, contains_task=str(task.pk) in body.decode())
    client = Client()
    if user is not None:
        client.force_login(user)
    before = all_rows()
    verb = "post" if method in ACTIONS else method.lower()
    response: Any = getattr(client, verb)(url, **request_data(door, method, name, task))
    if method in ACTIONS and response.status_code == 200:
        # The first response is a confirmation page.
        again = request_data(door, method, name, task)["data"] | {"confirmed": "yes"}
        response = client.post(url, again)
    contains_task = str(task.pk) in response.content.decode()
    return notation(response.status_code, contains_task=contains_task, changed=all_rows() != before)


def all_rows() -> tuple[Any, ...]:
    return *snapshot(), list(Worker.objects.order_by("pk").values())


def request_data(door: str, method: str, name: str, task: Task) -> dict[str, Any]:
    """Return the keyword arguments of the request."""
    if (door, method, name) == ("api", "POST", "task_list"):
        return {"data": json.dumps({"task": Ping.name()}), "content_type": "application/json"}
    if method in ACTIONS:
        return {"data": {"action": method, "_selected_action": str(task.pk)}}
    if (door, method) == ("admin", "POST") and name in ("cancel", "remove"):
        return {"data": {"confirmed": "yes"}}  # already confirmed
    if door in ("admin", "worker"):
        return {"data": {"_ids": str(task.pk)} if name == "live" else {}}
    data = {"task": str(task.pk)} if name == "statuses" else {}
    return {"data": data, "headers": {"Accept": "application/json"}}


def notation(status: int, contains_task: bool, changed: bool = False) -> str:
    return f"{status}{'!' if changed else '*' if contains_task and status == 200 else ''}"


@pytest.mark.parametrize(
    "check_outcomes",
    [*LINES, *LINES_OF_STREAMS],
    ids=lambda check_outcomes: "-".join(check_outcomes[:3]),
)
def test_each_role_gets_the_response_in_the_table(check_outcomes: list[str]) -> None:
    answers(check_outcomes, ROLES)


@pytest.mark.parametrize(
    "check_outcomes", LINES_OF_STAFF, ids=lambda check_outcomes: "-".join(check_outcomes[:3])
)
def test_staff_get_the_responses_in_their_table(check_outcomes: list[str]) -> None:
    answers(check_outcomes, STAFF)


@pytest.mark.parametrize(
    "check_outcomes", LINES_OF_OWNERS, ids=lambda check_outcomes: "-".join(check_outcomes[:3])
)
def test_owners_get_the_responses_in_their_table(check_outcomes: list[str]) -> None:
    answers(check_outcomes, OWNERS, Ping.name())


@pytest.mark.parametrize(
    "check_outcomes",
    [
        check_outcomes
        for check_outcomes in [*LINES, *LINES_OF_STREAMS]
        if check_outcomes[0] in ("api", "pages")
    ],
    ids=lambda check_outcomes: "-".join(check_outcomes[:3]),
)
def test_task_without_owner_is_hidden_from_other_users(check_outcomes: list[str]) -> None:
    """For example after its owner was deleted. Staff with permissions see it like any other."""
    door, method, name, status, *expected = check_outcomes
    people, responses = users(ROLES), dict(zip(ROLES, expected, strict=True))
    for role in ("anonymous", "owner", "viewer", "canceller", "retrier", "remover"):
        task = saved(Status(status), name="tests.tasks.Noop")
        actual = outcome(people[role], door, method, name, task)
        assert actual == responses["stranger" if role == "owner" else role], role


def answers(
    check_outcomes: list[str], roles: dict[str, dict[str, Any]], of: str = "tests.tasks.Noop"
) -> None:
    door, method, name, status, *expected = check_outcomes
    people, by = users(roles), worker()
    found = {}
    for role, fields in roles.items():
        owner = people[role if fields.get("owns") else "owner"]
        task = saved(Status(status), name=of, owner=owner, worker=by)
        found[role] = outcome(people[role], door, method, name, task)
    assert found == dict(zip(roles, expected, strict=True))


def test_table_has_every_url() -> None:
    doors: dict[str, list[Any]] = {
        "api": api.urlpatterns,
        "pages": pages.urlpatterns,
        "admin": admin.site.get_model_admin(Task).get_urls(),
        "worker": admin.site.get_model_admin(Worker).get_urls(),
    }
    for door, patterns in doors.items():
        names = {one.name for one in patterns if isinstance(one, URLPattern) and one.name}
        listed = {PREFIX[door] + name for line_door, _, name, *_ in LINES if line_door == door}
        assert listed == names - OF_NO_TASK.keys(), door
    admins = [
        check_outcomes[:4] for check_outcomes in LINES if check_outcomes[0] in ("admin", "worker")
    ]
    assert [check_outcomes[:4] for check_outcomes in LINES_OF_STAFF] == admins
    others = [
        check_outcomes[:4] for check_outcomes in LINES if check_outcomes[0] in ("api", "pages")
    ]
    assert [check_outcomes[:4] for check_outcomes in LINES_OF_OWNERS] == others


def test_table_has_every_operation_and_action() -> None:
    operations = {
        (method, operation.url_name)
        for view in router.path_operations.values()
        for operation in view.operations
        for method in operation.methods
    }
    assert operations == {(method, name) for door, method, name, *_ in LINES if door == "api"}
    assert set(admin.site.get_model_admin(Task).actions) == ACTIONS


def test_each_permission_has_a_role_alone_and_with_view() -> None:
    """Otherwise one permission could work in place of another without a failing test."""
    named = {fields["may"] for fields in (ROLES | STAFF).values() if "may" in fields}
    codenames = Permission.objects.filter(
        content_type__app_label="tasks_app", content_type__model="task"
    ).values_list("codename", flat=True)
    # These two of Django's permissions are unused: the admin neither adds nor edits tasks.
    alone = set(codenames) - {"add_task", "change_task"}
    beside = {f"view_task {codename}" for codename in alone - {"view_task"}}
    assert named == alone | beside | {"view_worker"}
