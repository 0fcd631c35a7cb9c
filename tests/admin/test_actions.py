"""Actions of operators on tasks in the admin: one by one, and many together."""

from __future__ import annotations

import html
import re
import uuid
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from tasks_app.admin import action_views, actions
from tasks_app.admin.actions import CANCEL, messages_about
from tasks_app.exceptions import DuplicateTask, TaskError
from tasks_app.models import Task, TaskEvent
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import bulk
from tasks_app.web.refusals import why
from tests import rows

from .conftest import Login

pytestmark = pytest.mark.django_db

LIST = reverse("admin:tasks_app_task_changelist")
#: The permission that each action needs, and a status in which it is possible.
ACTIONS = {
    "cancel": ("cancel_task", Status.PENDING),
    "retry": ("retry_task", Status.FAILED),
    "remove": ("delete_task", Status.COMPLETED),
}
PERMISSIONS = ["cancel_task", "retry_task", "delete_task"]


def url(act: str, task: Task | uuid.UUID) -> str:
    return reverse(f"admin:tasks_app_task_{act}", args=[getattr(task, "pk", task)])


def post(client: Client, act: str, task: Task | uuid.UUID, **options: Any) -> Any:
    return client.post(url(act, task), {"confirmed": "yes"}, **options)


def many(client: Client, act: str, tasks: list[Any], **data: Any) -> Any:
    ids = [str(getattr(task, "pk", task)) for task in tasks]
    query = data.pop("query", "")
    form = {"action": f"{act}_selected", "_selected_action": ids, "index": "0", **data}
    return client.post(LIST + query, form, follow=True)


def confirmed(client: Client, act: str, tasks: list[Any], **data: Any) -> Any:
    return many(client, act, tasks, confirmed="yes", **data)


def all_of(client: Client, act: str, query: str = "") -> Any:
    """Take an action on all matching tasks, and confirm it."""
    page = many(client, act, [uuid.uuid4()], select_across="1", query=query)
    return confirm(client, page, query)


def confirm(client: Client, page: Any, query: str = "") -> Any:
    """Submit the form of the confirmation page."""
    hidden = r'<input type="hidden" name="([^"]+)" value="([^"]+)">'
    fields = dict(re.findall(hidden, html.unescape(page.content.decode())))
    assert fields.keys() >= {"action", "_selected_action", "confirmed"}
    return client.post(LIST + query, fields, follow=True)


def messages_of(page: Any) -> list[str]:
    return [str(message) for message in page.context["messages"]]


def logged(task: Task) -> list[tuple[int, str, str]]:
    return [
        (entry.action_flag, entry.user.get_username(), entry.change_message)
        for entry in LogEntry.objects.filter(object_id=str(task.pk)).select_related("user")
    ]


# Single tasks.


def test_cancel(login: Login) -> None:
    client = login("view_task", "cancel_task")
    task = rows.enqueued()
    page = post(client, "cancel", task, follow=True)
    assert messages_of(page) == ["Noop: Cancelled."]
    assert rows.fresh(task).status == Status.CANCELLED
    assert rows.last_fact(task).data == {"by": "staff"}
    assert logged(task) == [(CHANGE, "staff", "Cancelled.")]


def test_cancel_asks_for_confirmation(login: Login) -> None:
    """Without a script, the buttons of the list and of the page both ask for confirmation."""
    client = login("view_task", "cancel_task")
    task = rows.enqueued()
    back = f"http://testserver{LIST}?queue=default"
    page = client.post(url("cancel", task), headers={"referer": back})
    assert "it will be asked to stop" in page.content.decode()
    assert rows.fresh(task).status == Status.PENDING
    assert logged(task) == []
    fields = dict(re.findall(r'name="(confirmed|back)" value="([^"]+)"', page.content.decode()))
    assert client.post(url("cancel", task), fields)["Location"] == back
    assert rows.fresh(task).status == Status.CANCELLED
    # The redirect stays on this site.
    fields["back"] = "https://elsewhere.test/"
    other = rows.enqueued()
    page_of = reverse("admin:tasks_app_task_change", args=[other.pk])
    assert client.post(url("cancel", other), fields)["Location"] == page_of


def test_cancel_of_a_running_task_is_a_request(login: Login) -> None:
    client = login("view_task", "cancel_task")
    task, _claim = rows.claimed()
    assert messages_of(post(client, "cancel", task, follow=True)) == ["Noop: Stopping…"]
    assert rows.fresh(task).cancel_requested_at
    assert logged(task) == [(CHANGE, "staff", "Requested cancellation.")]


def test_retry(login: Login) -> None:
    client = login("view_task", "retry_task")
    task = rows.ended(Status.FAILED)
    page = client.post(url("retry", task), follow=True)
    again = Task.objects.get(retried_from=task)
    assert messages_of(page) == ["Noop: Retried."]
    assert page.redirect_chain == [(reverse("admin:tasks_app_task_change", args=[again.pk]), 302)]
    assert logged(task) == [(CHANGE, "staff", f"Retried as task {again.pk}.")]


def test_remove_asks_for_confirmation(login: Login) -> None:
    client = login("view_task", "delete_task")
    task = rows.ended(Status.COMPLETED)
    page = client.get(url("delete", task)).content.decode()
    assert "This cannot be undone" in page
    assert "task_started" not in page
    assert rows.fresh(task)
    after = client.post(url("delete", task), follow=True)
    assert messages_of(after) == ["Noop: Deleted with its history."]
    assert after.redirect_chain == [(LIST, 302)]
    assert not Task.objects.exists()
    assert not TaskEvent.objects.exists()
    assert logged(task) == [(DELETION, "staff", "Deleted with its history.")]


def test_unfinished_task_is_not_removed(login: Login) -> None:
    client = login("view_task", "delete_task")
    task = rows.enqueued()
    assert "cancel this one first" in client.get(url("delete", task)).content.decode()
    page = client.post(url("delete", task), follow=True)
    assert messages_of(page) == ["Couldn't do that: still pending."]
    assert rows.fresh(task)
    assert logged(task) == []


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        ("cancel", Status.COMPLETED, "already completed"),
        ("retry", Status.COMPLETED, "already completed"),
        ("remove", Status.RUNNING, "still running"),
    ],
)
def test_impossible_action_is_reported(
    admin_client: Client, act: str, status: Status, reason: str
) -> None:
    task = rows.saved(status)
    before = rows.snapshot()
    page = admin_client.post(url(act, task), follow=True)
    assert messages_of(page) == [f"Couldn't do that: {reason}."]
    json = admin_client.post(url(act, task), headers={"accept": "application/json"})
    assert (json.status_code, json.json()) == (409, {"detail": reason})
    assert rows.snapshot() == before
    assert logged(task) == []


def test_retried_task_is_not_retried_again(admin_client: Client) -> None:
    task = rows.ended(Status.FAILED, unique_key="key")
    task_service.retry_task(task.pk)
    page = admin_client.post(url("retry", task), follow=True)
    assert messages_of(page) == ["Couldn't do that: already retried."]
    other = rows.saved(Status.FAILED, unique_key="key")
    page = admin_client.post(url("retry", other), follow=True)
    [message] = messages_of(page)
    assert "another task with its unique key has not finished" in message


def test_buttons_of_the_list_get_json(admin_client: Client) -> None:
    task = rows.enqueued()
    answer = admin_client.post(url("cancel", task), headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {"detail": "Cancelled."})


def test_action_redirects_to_the_list_it_came_from(admin_client: Client) -> None:
    back = f"http://testserver{LIST}?status=pending"
    page = post(admin_client, "cancel", rows.enqueued(), headers={"referer": back})
    assert page["Location"] == back
    elsewhere = {"referer": "https://elsewhere.test/"}
    task = rows.enqueued()
    page = post(admin_client, "cancel", task, headers=elsewhere)
    assert page["Location"] == reverse("admin:tasks_app_task_change", args=[task.pk])


@pytest.mark.parametrize("act", ACTIONS)
def test_missing_task_is_not_found(admin_client: Client, act: str) -> None:
    assert post(admin_client, act, uuid.uuid4()).status_code == 404


@pytest.mark.parametrize("act", ACTIONS)
def test_actions_need_post_and_csrf_token(admin_user: User, act: str) -> None:
    task = rows.saved(ACTIONS[act][1])
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    before = rows.snapshot()
    assert client.get(url(act, task)).status_code == 405
    assert client.post(url(act, task)).status_code == 403
    assert client.post(url("delete", task)).status_code == 403
    assert client.post(LIST, {"action": f"{act}_selected"}).status_code == 403
    assert rows.snapshot() == before


def test_log_is_in_the_readers_language(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acting user may have had another language.

    The patch marks translated texts if a language is active.
    """

    def translated(text: str) -> str:
        return f"«{text}»" if translation.get_language() else text

    monkeypatch.setattr(actions, "_", translated)
    failed = rows.ended(Status.FAILED)
    post(admin_client, "retry", failed)
    again = Task.objects.get(retried_from=failed)
    post(admin_client, "cancel", again)
    user = User.objects.get(username="admin")
    LogEntry.objects.log_actions(user.pk, [again], CHANGE, "Cancelled. By a program.")
    assert logged(failed) == [(CHANGE, "admin", f"Retried as task {again.pk}.")]

    def read(task: Task) -> list[str]:
        page = admin_client.get(reverse("admin:tasks_app_task_history", args=[task.pk]))
        return re.findall(r"<td>admin</td>\s*<td>([^<]*)</td>", page.content.decode())

    assert read(failed) == [f"«Retried as task {again.pk}.»"]
    assert read(again) == ["«Cancelled.»", "Cancelled. By a program."]


def test_reason_is_in_the_sites_language() -> None:
    class ClosedError(TaskError):
        """The shop is closed.

        The second paragraph is not shown.
        """

    assert why(ClosedError()) == "The shop is closed"
    assert why(DuplicateTask("key")) == "another task with its unique key has not finished"


# Permissions.


@pytest.mark.parametrize("act", ACTIONS)
@pytest.mark.parametrize("permission", [*PERMISSIONS, None])
def test_each_action_needs_its_permission(login: Login, act: str, permission: str | None) -> None:
    needed, status = ACTIONS[act]
    client = login("view_task", *[permission] if permission else [])
    one, other = rows.saved(status), rows.saved(status)
    before = rows.snapshot()
    allowed = permission == needed
    change = client.get(reverse("admin:tasks_app_task_change", args=[one.pk])).content.decode()
    assert (f"task-act-{act}" in change) is allowed
    assert (f"{act}_selected" in client.get(LIST).content.decode()) is allowed
    if act != "remove":
        assert (f'data-act="{act}"' in client.get(LIST).content.decode()) is allowed
    answer = post(client, act, one)
    assert answer.status_code == (302 if allowed else 403)
    if act == "remove":
        again = rows.saved(status)
        assert client.get(url("delete", again)).status_code == (200 if allowed else 403)
        again.delete()
    many(client, act, [other], confirmed="yes")
    assert (rows.snapshot() != before) is allowed


@pytest.mark.parametrize(
    ("permissions", "is_staff"), [(["view_task", *PERMISSIONS], False), (PERMISSIONS, True)]
)
def test_actions_need_the_permission_to_view(
    login: Login, permissions: list[str], is_staff: bool
) -> None:
    client = login(*permissions, is_staff=is_staff)
    task = rows.enqueued()
    before = rows.snapshot()
    assert client.get(LIST).status_code in (302, 403)
    for act in ACTIONS:
        assert post(client, act, task).status_code in (302, 404)
        assert many(client, act, [task], confirmed="yes").status_code in (200, 403)
    assert rows.snapshot() == before


def test_tasks_cannot_be_added_or_changed(admin_client: Client) -> None:
    task = rows.enqueued()
    before = rows.snapshot()
    # Tasks are started instead.
    start = reverse("admin:tasks_app_task_start")
    assert admin_client.post("/admin/tasks_app/task/add/", {"name": "x"})["Location"] == start
    page = reverse("admin:tasks_app_task_change", args=[task.pk])
    assert admin_client.post(page, {"status": "completed"}).status_code == 405
    assert "delete_selected" not in admin_client.get(LIST).content.decode()
    many(admin_client, "delete", [task], post="yes")
    assert rows.snapshot() == before


# Many tasks.


def test_many_are_cancelled(admin_client: Client) -> None:
    waiting = [rows.enqueued() for _ in range(3)]
    over = [rows.saved(Status.COMPLETED), rows.saved(Status.FAILED), rows.saved(Status.FAILED)]
    page = many(admin_client, "cancel", [*waiting, *over])
    assert "Running tasks will be asked to stop." in page.content.decode()
    assert [rows.fresh(task).status for task in waiting] == [Status.PENDING] * 3
    page = confirmed(admin_client, "cancel", [*waiting, *over])
    assert messages_of(page) == [
        "3 tasks were cancelled or asked to stop.",
        "Skipped 3 tasks: already failed (2); already completed (1).",
    ]
    assert [rows.fresh(task).status for task in waiting] == [Status.CANCELLED] * 3
    assert [logged(task) for task in waiting] == [[(CHANGE, "admin", "Cancelled.")]] * 3
    assert [logged(task) for task in over] == [[]] * 3


def test_many_are_retried(admin_client: Client) -> None:
    tasks = [rows.saved(Status.FAILED), rows.saved(Status.CANCELLED), rows.saved(Status.FAILED)]
    task_service.retry_task(tasks[2].pk)
    gone = [rows.saved(Status.FAILED, name="shop.tasks.Gone") for _ in range(2)]
    page = many(admin_client, "retry", tasks + gone)
    [link] = re.findall(r'2 tasks were retried. <a href="([^"]+)">', messages_of(page)[0])
    found = admin_client.get(html.unescape(link)).context["cl"].result_list
    chosen = set(Task.objects.filter(retried_from__in=tasks[:2]))
    # The third one was retried before.
    assert set(found) == chosen
    assert messages_of(page)[1:] == [
        "Skipped 3 tasks: its task class no longer exists (2); already retried (1).",
    ]
    assert Task.objects.filter(retried_from__in=tasks).count() == 3
    assert not Task.objects.filter(retried_from__in=gone).exists()


def test_many_are_removed_after_confirmation(admin_client: Client) -> None:
    tasks = [rows.ended(Status.COMPLETED), rows.ended(Status.FAILED), rows.enqueued()]
    page = many(admin_client, "remove", tasks)
    assert "3 tasks selected" in page.content.decode()
    assert Task.objects.count() == 3
    page = many(admin_client, "remove", tasks, confirmed="yes")
    assert messages_of(page) == [
        "2 tasks were deleted with their history.",
        "Skipped 1 task: still pending.",
    ]
    assert Task.objects.get() == tasks[2]
    assert LogEntry.objects.filter(action_flag=DELETION).count() == 2


def test_confirmation_form_performs_the_action(admin_client: Client) -> None:
    """It sends no index, as Django's admin expects."""
    task = rows.ended(Status.COMPLETED)
    page = many(admin_client, "remove", [task])
    confirm(admin_client, page)
    assert not Task.objects.exists()


def test_all_matching_tasks(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_app.admin.index_order.WINDOW", 2)
    monkeypatch.setattr(bulk, "BATCH", 3)
    matching = [rows.saved(queue="mails") for _ in range(7)]
    others = [rows.saved(), rows.saved(Status.COMPLETED, queue="mails")]
    choice = {"select_across": "1", "query": "?queue=mails"}
    page = many(admin_client, "cancel", matching[:1], **choice)
    assert "All tasks that match the filters" in page.content.decode()
    assert Task.objects.filter(status=Status.CANCELLED).count() == 0
    page = confirm(admin_client, page, "?queue=mails")
    assert messages_of(page) == ["7 tasks were cancelled or asked to stop."]
    assert {rows.fresh(task).status for task in matching} == {Status.CANCELLED}
    assert [rows.fresh(task).status for task in others] == [Status.PENDING, Status.COMPLETED]
    page = all_of(admin_client, "cancel", "?queue=mails")
    assert messages_of(page) == ["None of these tasks can be changed this way."]


@pytest.mark.django_db(transaction=True)
def test_each_batch_is_a_transaction_even_with_atomic_requests(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one request would hold SQLite's write lock for all batches."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(bulk, "BATCH", 2)
    tasks = [rows.saved() for _ in range(5)]
    breaks = iter([False, False, True])

    def write_log(*_arguments: Any) -> None:
        if next(breaks):
            raise RuntimeError("the third batch fails")

    monkeypatch.setattr(action_views, "write_log", write_log)
    with pytest.raises(RuntimeError, match="the third batch"):
        confirmed(admin_client, "cancel", tasks)
    assert Task.objects.filter(status=Status.CANCELLED).count() == 4


@pytest.mark.parametrize("act", ACTIONS)
def test_all_matching_means_matching_at_the_confirmation_page(
    admin_client: Client, act: str
) -> None:
    _permission, status = ACTIONS[act]
    existing = rows.saved(status)
    running = rows.saved(Status.RUNNING)
    confirmation = many(admin_client, act, [existing], select_across="1")
    since = [rows.saved(status)]
    if status.is_terminal:
        error = rows.FIELDS[status]
        Task.objects.filter(pk=running.pk).update(
            status=status,
            finished_at=timezone.now(),
            fencing_token=None,
            **error,
            lease_expires_at=None,
        )
        since.append(running)
    before = [rows.fresh(task) for task in since]
    [message] = messages_of(confirm(admin_client, confirmation))
    assert message.startswith("1 task " if act != "cancel" else "2 tasks ")
    assert [rows.fresh(task).status for task in since] == [task.status for task in before]
    assert not Task.objects.filter(retried_from__in=since)


@pytest.mark.parametrize("time", ["", "odd", "2026-02-30T00:00:00+00:00"])
def test_invalid_time_of_confirmation_asks_again(admin_client: Client, time: str) -> None:
    task = rows.saved()
    page = many(admin_client, "cancel", [task], select_across="1", confirmed="yes", asked=time)
    assert "that matches the filters" in page.content.decode()
    assert rows.fresh(task).status == Status.PENDING


def test_one_request_acts_on_a_limited_number(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_views, "MAX_TASKS", 2)
    for _ in range(5):
        rows.saved()
    more = "Stopped after 2 tasks, and there are more. Run it again to continue."
    for done, *rest in (2, more), (2, more), (1,):
        messages = messages_of(all_of(admin_client, "cancel"))
        assert messages[0].startswith(f"{done} task")
        assert messages[1:] == rest
    assert not Task.objects.unfinished()


def test_time_limit_is_reported() -> None:
    assert messages_about(CANCEL, bulk.Summary(done=1, left=3)) == [
        (True, "1 task was cancelled or asked to stop."),
        (False, "Stopped after 20 s with 3 tasks left. Run it again to continue."),
    ]


def test_deleted_tasks_are_reported(admin_client: Client) -> None:
    page = confirmed(admin_client, "cancel", [uuid.uuid4(), uuid.uuid4(), rows.enqueued()])
    assert messages_of(page) == [
        "1 task was cancelled or asked to stop.",
        "Skipped 2 tasks: the task no longer exists.",
    ]


@pytest.mark.parametrize(
    ("act", "now", "query", "after"),
    [
        ("cancel", Status.RUNNING, "?status=pending", "1 task was cancelled or asked to stop."),
        ("retry", Status.FAILED, "?status=running", "1 task was retried."),
        ("retry", Status.FAILED, "?from=2001-01-01T00:00:00", "1 task was retried."),
        ("remove", Status.COMPLETED, "?q=old", "1 task was deleted with its history."),
    ],
)
def test_selected_row_that_left_the_filter_is_acted_on(
    admin_client: Client, act: str, now: Status, query: str, after: str
) -> None:
    """Rows are updated in place, so a selected task may no longer match the page's filters."""
    task = rows.saved(now)
    page = many(admin_client, act, [task], query=query)
    if act != "retry":
        assert "1 task selected" in page.content.decode()
        assert f'<bdi class="task-path">{task.pk}</bdi>' in page.content.decode()
        page = many(admin_client, act, [task], query=query, confirmed="yes")
    [message] = messages_of(page)
    assert message.partition(" <a ")[0] == after


def test_invalid_id_is_refused(admin_client: Client) -> None:
    assert confirmed(admin_client, "cancel", ["odd"]).status_code == 400
