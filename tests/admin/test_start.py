"""Starting tasks from the admin: permissions, the form, and the result."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from django.conf import settings
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel, Field, NaiveDatetime, SecretStr, model_validator

from project.airports.tasks import ExportAirports, FarthestReachable, ImportAirports
from tasks_app.models import Task, TaskEvent
from tasks_app.service import users_key
from tasks_app.states import Status
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tests import tasks
from tests.rows import enqueued
from tests.tasks.test_forms import XSS
from tests.test_permissions import someone

pytestmark = pytest.mark.django_db

OFFERS = reverse("admin:tasks_app_task_start")
LIST = reverse("admin:tasks_app_task_changelist")


def form_of(task: type[BaseTask]) -> str:
    return reverse("admin:tasks_app_task_start_form", args=[task.name()])


def page_of(task: Task) -> str:
    return reverse("admin:tasks_app_task_change", args=[task.pk])


def logged_in(*codenames: str, **fields: Any) -> Client:
    client = Client()
    client.force_login(someone(*codenames, **{"is_staff": True, **fields}))
    return client


@pytest.fixture
def operator() -> Client:
    return logged_in("start_task", "view_task")


class Ship(BaseTask):
    """Send parcels to where they belong.

    The second paragraph explains how.
    """

    verbose_name = "Ship parcels"
    queue = "parcels"
    startable = True

    class Params(BaseModel):
        count: Annotated[int, Field(ge=1, description="How many", examples=[12])]
        note: str = "fragile"
        key: SecretStr = SecretStr("default-p4ss")
        lines: list[int] = []

        @model_validator(mode="after")
        def fits(self) -> Ship.Params:
            if self.count > 100:
                raise ValueError("too much for one lorry")
            return self

    def execute(self, progress: ProgressHandle, **params: Any) -> None: ...


class Loud(BaseTask):
    __doc__ = XSS
    verbose_name = XSS
    startable = True

    def execute(
        self,
        progress: ProgressHandle,
        word: Annotated[str, Field(description=XSS, title=XSS)] = XSS,
    ) -> None: ...


class Guarded(BaseTask):
    startable = True
    start_permission = "airports.add_airport"

    def execute(self, progress: ProgressHandle) -> None: ...


class Parcel(BaseModel):
    size: Literal["small", "large"]
    weight: float = 1.5
    inner: Parcel | None = None


class Address(BaseModel):
    name: Annotated[str, Field(description="Whom it is for", examples=["Ada"])]
    parcels: list[Parcel]
    key: SecretStr
    since: date | None = None


class Nested(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle, to: Address) -> None: ...


class Timed(BaseTask):
    startable = True

    def execute(
        self, progress: ProgressHandle, due: datetime, on_the_wall: NaiveDatetime
    ) -> None: ...


class Misdeclared(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle, **anything: Any) -> None: ...


def text(response: Any) -> str:
    return str(response.content.decode())


# Permissions.


@pytest.mark.parametrize(
    ("codenames", "fields", "offers", "form"),
    [
        (("start_task", "view_task"), {}, 200, 200),
        (("start_task",), {}, 200, 200),
        (("view_task",), {}, 200, 404),
        (("cancel_task", "retry_task", "delete_task"), {}, 403, 404),
        ((), {"is_superuser": True}, 200, 200),
        (("start_task", "view_task"), {"is_staff": False}, 302, 302),
        (("start_task", "view_task"), {"is_active": False}, 302, 302),
    ],
)
def test_permission_to_start(
    codenames: tuple[str, ...], fields: dict[str, Any], offers: int, form: int
) -> None:
    client = logged_in(*codenames, **fields)
    assert client.get(OFFERS).status_code == offers
    assert client.get(form_of(Ship)).status_code == form
    started = client.post(form_of(Ship), {"params-count": "1"}).status_code
    assert started == (302 if form == 200 else form)
    assert Task.objects.exists() == (form == 200)


def test_anonymous_user_is_redirected_to_login(client: Client) -> None:
    for url in (OFFERS, form_of(Ship)):
        assert "/login/" in client.get(url).headers["Location"]


def test_task_without_opt_in_cannot_be_started(admin_client: Client) -> None:
    """Not even by a superuser, who may do everything else."""
    for task in (ImportAirports, tasks.Noop):
        assert admin_client.post(form_of(task)).status_code == 404
        assert form_of(task) not in text(admin_client.get(OFFERS))
    assert not Task.objects.exists()


def test_start_permission_of_a_task(operator: Client, admin_client: Client) -> None:
    assert form_of(Guarded) not in text(operator.get(OFFERS))
    assert operator.post(form_of(Guarded)).status_code == 404
    assert form_of(Guarded) in text(admin_client.get(OFFERS))
    admin_client.post(form_of(Guarded))
    assert Task.objects.get().name == Guarded.name()


def test_start_needs_a_csrf_token() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(someone("start_task", is_staff=True))
    assert client.post(form_of(Ship), {"params-count": "1"}).status_code == 403
    assert not Task.objects.exists()


def test_list_of_tasks_links_to_it(operator: Client) -> None:
    assert operator.get(LIST).context["start_url"] == OFFERS
    assert logged_in("view_task").get(LIST).context["start_url"] == ""


@pytest.mark.parametrize(
    ("codenames", "offered"),
    [(["start_task"], True), (["view_task"], False), (["add_airport"], True)],
)
def test_admin_index_links_to_it(codenames: list[str], offered: bool) -> None:
    """Even for users who may see neither tasks nor workers."""
    client = logged_in()
    user = User.objects.get()
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    add = reverse("admin:tasks_app_task_add")
    assert (f'href="{add}"' in text(client.get(reverse("admin:index")))) is offered
    answer = client.get(add)
    assert answer.status_code == (302 if offered else 403)
    if offered:
        assert answer["Location"] == OFFERS
        assert client.get(OFFERS).status_code == 200


# Offered tasks.


def test_offers_have_descriptions(operator: Client) -> None:
    page = text(operator.get(OFFERS))
    for word in (
        "Ship parcels",
        "Send parcels to where they belong.",
        Ship.name(),
        "queue parcels",
    ):
        assert word in page
    assert "second paragraph" not in page
    for task in (ExportAirports, FarthestReachable):
        assert form_of(task) in page


@pytest.mark.parametrize("search", ["ship", "PARCELS send", "test_start.ship", "second paragraph"])
def test_offers_are_searched(operator: Client, search: str) -> None:
    found = operator.get(OFFERS, {"q": search}).context["offers"]
    assert [offer.task for offer in found] == [Ship]


def test_search_without_results(operator: Client) -> None:
    page = text(operator.get(OFFERS, {"q": f"zzz {XSS}"}))
    assert "No task matches" in page
    assert "<script>alert" not in page


def test_page_without_offers_explains_startable() -> None:
    assert "startable = True" in text(logged_in("view_task").get(OFFERS))


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "broken_shop").mkdir()
    (tmp_path / "broken_shop" / "__init__.py").touch()
    (tmp_path / "broken_shop" / "tasks.py").write_text('raise ValueError("<b>no stock</b>")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("broken_shop")]:
        del sys.modules[name]


def test_module_that_cannot_be_imported_is_reported(operator: Client, broken: None) -> None:
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "broken_shop"]):
        page = text(operator.get(OFFERS))
    assert "broken_shop.tasks" in page
    assert "ValueError: &lt;b&gt;no stock&lt;/b&gt;" in page
    assert form_of(Ship) in page


# The form.


def test_form_has_a_field_for_each_parameter(operator: Client) -> None:
    page = text(operator.get(form_of(Ship)))
    for word in (
        "Start: Ship parcels",
        "The second paragraph explains how.",
        'placeholder="12"',
        'value="fragile"',
        "How many",
        'placeholder="parcels"',
    ):
        assert word in page
    assert "default-p4ss" not in page


def test_task_without_parameters_has_only_a_button(admin_client: Client) -> None:
    assert "No parameters." not in text(admin_client.get(form_of(Loud)))
    page = text(admin_client.get(form_of(Guarded)))
    assert "No parameters." in page
    assert 'name="params-' not in page


def test_text_is_escaped(operator: Client) -> None:
    for page in (
        text(operator.get(OFFERS)),
        text(operator.get(form_of(Loud))),
        text(operator.post(form_of(Loud), {"options-queue": XSS * 99, "params-word": XSS})),
    ):
        assert "alert(1)" in page
        assert "<script>alert" not in page
    operator.post(form_of(Loud), follow=True)
    assert Task.objects.get().params == {"word": XSS}
    assert "<script>alert" not in text(operator.get(page_of(Task.objects.get())))


def test_task_that_cannot_run_shows_the_reason(operator: Client) -> None:
    for response in (operator.get(form_of(Misdeclared)), operator.post(form_of(Misdeclared))):
        assert response.status_code == 200
        assert "declares nothing" in text(response)
    assert not Task.objects.exists()


def test_unknown_name_is_not_found(operator: Client) -> None:
    for name in ("nonsense", "os.path", "tests.tasks.Nothing", XSS):
        url = reverse("admin:tasks_app_task_start_form", args=[name.replace("/", "")])
        assert operator.get(url).status_code == 404


# The start.


def test_start_redirects_to_the_tasks_page(operator: Client) -> None:
    user = User.objects.get()
    response = operator.post(
        form_of(Ship), {"params-count": "3", "params-note": "", "params-lines": "[1, 2]"}
    )
    task = Task.objects.get()
    assert response.headers["Location"] == page_of(task)
    assert (task.name, task.owner, task.status) == (Ship.name(), user, Status.PENDING)
    assert (task.queue, task.priority, task.unique_key) == ("parcels", 0, None)
    assert task.params == {"count": 3, "note": "", "key": "default-p4ss", "lines": [1, 2]}
    assert TaskEvent.objects.filter(task=task).count() == 1

    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.action_flag) == (user, str(task.pk), ADDITION)
    page = text(operator.get(page_of(task)))
    assert "Ship parcels was started." in page
    assert "default-p4ss" not in page + entry.change_message + entry.object_repr


def test_start_without_permission_to_view_redirects_to_the_offers() -> None:
    client = logged_in("start_task")
    response = client.post(form_of(Ship), {"params-count": "3"}, follow=True)
    assert response.redirect_chain == [(OFFERS, 302)]
    assert "Ship parcels was started." in text(response)


def test_options(operator: Client) -> None:
    later = (timezone.localtime() + timedelta(days=1)).replace(second=0, microsecond=0, tzinfo=None)
    operator.post(
        form_of(Ship),
        {
            "params-count": "3",
            "options-queue": "night",
            "options-priority": "-5",
            "options-run_after": later.isoformat(),
            "options-unique_key": "parcels of today",
        },
    )
    task = Task.objects.get()
    key = users_key(task.owner, "parcels of today")
    assert (task.queue, task.priority, task.unique_key) == ("night", -5, key)
    assert task.run_after == timezone.make_aware(later)


def refused(response: HttpResponse, before: int = 0) -> str:
    assert response.status_code == 200
    assert Task.objects.count() == before
    assert not LogEntry.objects.exists()
    return html.unescape(text(response))


def test_invalid_parameter_is_reported_at_its_field_and_keeps_the_input(operator: Client) -> None:
    page = refused(
        operator.post(
            form_of(Ship),
            {"params-count": "0", "params-key": "typed-p4ss", "params-note": "keep me"},
        )
    )
    assert "Not started." in page
    assert "Must be at least 1." in page
    assert 'value="0"' in page
    assert 'aria-invalid="true"' in page
    assert 'id="id_params-count_error"' in page
    assert "autofocus" in page
    assert 'value="keep me"' in page
    assert "typed-p4ss" not in page


def test_first_invalid_field_has_the_focus(operator: Client) -> None:
    """Even if JSON further down cannot be parsed, which is detected first."""
    data = {"params-count": "0", "params-lines": "[1,", "options-priority": "high"}
    page = refused(operator.post(form_of(Ship), data))
    assert re.findall(r"<(?:input|textarea|select)[^>]*name=\"([^\"]+)\"[^>]* autofocus", page) == [
        "params-count"
    ]
    assert "Invalid JSON at line 1, column 4" in page


def test_expected_json_of_a_parameter_is_shown(operator: Client) -> None:
    page = html.unescape(text(operator.get(form_of(Nested))))
    [example] = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)
    assert Nested.validate_params({"to": json.loads(example)})
    assert json.loads(example) == {
        "name": "Ada",
        "parcels": [{"size": "small", "weight": 1.5, "inner": None}],
        "key": "…",
        "since": "2026-01-31",
    }
    rows = re.findall(
        r"<tr><th[^>]*><code>([^<]*)</code></th><td>([^<]*)</td><td[^>]*>([^<]*)</td></tr>", page
    )
    assert rows[:5] == [
        ("name", "text", "Whom it is for"),
        ("parcels", "list of: object", ""),
        ("parcels[].size", "small, large", ""),
        ("parcels[].weight", "number, optional", ""),
        ("parcels[].inner", "object or null, optional", ""),
    ]
    # Simple values need no example.
    assert "start-shape" not in text(operator.get(form_of(Loud)))


@override_settings(TIME_ZONE="Europe/Berlin")
def test_times_show_their_zone(operator: Client) -> None:
    page = text(operator.get(form_of(Timed)))
    assert "Earliest start (Europe/Berlin):" in page
    assert "Due (Europe/Berlin):" in page
    assert "On the wall:" in page


def test_invalid_combination_is_reported_above_the_fields(operator: Client) -> None:
    page = refused(operator.post(form_of(Ship), {"params-count": "101"}))
    assert "too much for one lorry" in page


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("queue", "x" * 101, "100 or fewer characters"),
        ("priority", "101", "at most 100"),
        ("priority", "high", "whole number"),
        ("run_after", "tomorrow", "a date and a time"),
        ("unique_key", "x" * 201, "200 or fewer characters"),
    ],
)
def test_invalid_option_is_reported_at_its_field(
    operator: Client, option: str, value: str, expected: str
) -> None:
    data = {"params-count": "1", f"options-{option}": value}
    response = operator.post(form_of(Ship), data)
    page = refused(response)
    [error] = response.context["options"].errors[option]
    assert expected in error
    assert f'value="{value}"' in page
    assert "<details open>" in page


def test_unique_key_in_use_is_reported_at_its_field(operator: Client) -> None:
    enqueued(unique_key="today")  # A key of the site's own code, which does not block users' keys.
    data = {"params-count": "1", "options-unique_key": "today"}
    assert operator.post(form_of(Ship), data).status_code == 302
    existing = Task.objects.get(owner__isnull=False)
    LogEntry.objects.all().delete()
    page = refused(operator.post(form_of(Ship), data), before=2)
    assert "Another task with the same unique key has not finished" in page
    assert f"/task/{existing.pk}/change/" in page


def test_holder_of_a_unique_key_is_hidden_from_users_who_may_not_see_it() -> None:
    eve = someone("start_task", is_staff=True)
    existing = enqueued(unique_key=users_key(eve, "today"))
    client = Client()
    client.force_login(eve)
    data = {"params-count": "1", "options-unique_key": "today"}
    page = refused(client.post(form_of(Ship), data), before=1)
    assert "Another task with the same unique key has not finished" in page
    assert str(existing.pk) not in page


def test_validation_that_fails_only_at_the_start_is_reported(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that reads the database can refuse the start of a valid form."""
    validate, calls = Ship.validate_params, []

    def later(params: Any) -> dict[str, Any]:
        calls.append(params)
        return validate({**params, "count": -1} if len(calls) > 1 else params)

    monkeypatch.setattr(Ship, "validate_params", later)
    page = refused(operator.post(form_of(Ship), {"params-count": "3"}))
    assert "Must be at least 1." in page


def test_number_of_queries_is_constant(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    for url in (OFFERS, form_of(Ship)):
        with django_assert_max_num_queries(5):
            operator.get(url)
