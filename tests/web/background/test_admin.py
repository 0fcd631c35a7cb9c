"""Admin actions that start a task: the demonstration site's and unusual ones."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path, reverse
from pytest_django import DjangoAssertNumQueries, Settings

from project.airports.models import Airport
from project.airports.tasks import ExportAirports
from tasks_app.models import Task
from tasks_app.web.background import TooManySelected, background_action, keys
from tests.tasks import WithModel

pytestmark = pytest.mark.django_db

LIST = "/admin/airports/airport/"


class OddAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    actions = ["few", "chosen", "wrong", "one", "ask"]

    @background_action(ExportAirports, most=3)
    def few(self, request: HttpRequest, queryset: QuerySet[Airport]) -> None:
        """Takes at most three rows."""

    @background_action(ExportAirports)
    @admin.action(description="Export a country", permissions=["change"])
    def chosen(self, request: HttpRequest, queryset: QuerySet[Airport]) -> dict[str, Any]:
        return {"country": queryset.values_list("country", flat=True)[0]}

    @background_action(WithModel, ids="number")
    def wrong(self, request: HttpRequest, queryset: QuerySet[Airport]) -> None:
        """Passes a list of ids as a number."""

    @background_action("project.airports.tasks.ExportAirports", unique_key="one", priority=7)
    def one(self, request: HttpRequest, queryset: QuerySet[Airport]) -> None:
        """Runs one task at a time."""

    @background_action(ExportAirports)
    def ask(self, request: HttpRequest, queryset: QuerySet[Airport]) -> HttpResponse:
        return HttpResponse("Are you sure?")


odd_site = admin.AdminSite("odd")
odd_site.register(Airport, OddAdmin)
urlpatterns = [path("admin/", odd_site.urls)]


@pytest.fixture
def odd(settings: Settings) -> None:
    """Serve the admin with the unusual actions."""
    settings.ROOT_URLCONF = "tests.web.background.urls"


def run(client: Client, action: str, rows: list[Airport], **fields: Any) -> Any:
    data = {"action": action, "_selected_action": [row.pk for row in rows], **fields}
    return client.post(f"{LIST}?country=NO", data)


def messages_of(response: Any) -> list[tuple[str, str]]:
    return [(message.level_tag, str(message)) for message in get_messages(response.wsgi_request)]


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_action_starts_a_task_and_redirects_to_its_page(
    staff: Any, airports: list[Airport]
) -> None:
    user = staff("view_airport")
    response = run(client_of(user), "export_selected", airports[:2])
    task = Task.objects.get()
    assert task.name == "project.airports.tasks.ExportAirports"
    assert task.params["ids"] == [airports[0].pk, airports[1].pk]
    assert task.owner == user
    page = reverse("tasks_app:task", args=[task.pk])
    assert (response.status_code, response["Location"]) == (
        302,
        f"{page}?next=%2Fadmin%2Fairports%2Fairport%2F%3Fcountry%3DNO",
    )
    text = client_of(user).get(response["Location"]).content.decode()
    assert f'<a href="{LIST}?country=NO">Back</a>' in text
    assert "2 selected" in text


def test_action_is_recorded_in_the_admin_log(staff: Any, airports: list[Airport]) -> None:
    user = staff("view_airport")
    run(client_of(user), "export_selected", airports[:2])
    [entry] = LogEntry.objects.all()
    assert (entry.user, entry.action_flag) == (user, ADDITION)
    assert entry.get_edited_object() == Task.objects.get()
    assert entry.get_change_message() == (
        "Started by the action “Export selected airports” for 2 selected rows."
    )


def test_action_requires_its_permission(odd: None, staff: Any, airports: list[Airport]) -> None:
    viewer = client_of(staff("view_airport"))
    assert b"Export a country" not in viewer.get(LIST).content
    run(viewer, "chosen", airports)
    assert not Task.objects.exists()
    changer = client_of(staff("view_airport", "change_airport", name="changer"))
    assert b"Export a country" in changer.get(LIST).content
    run(changer, "chosen", airports)
    assert Task.objects.get().params["country"] == "NO"
    assert LogEntry.objects.get().change_message == ("Started by the action “Export a country”.")


def test_select_across_selects_all_matching_rows(staff: Any, airports: list[Airport]) -> None:
    run(client_of(staff("view_airport")), "export_selected", airports[:1], select_across="1")
    assert Task.objects.get().params["ids"] == [airport.pk for airport in airports]


def test_too_many_selected_rows_are_refused(odd: None, staff: Any, airports: list[Airport]) -> None:
    response = run(client_of(staff("view_airport")), "few", airports[:1], select_across="1")
    assert response["Location"] == f"{LIST}?country=NO"
    assert messages_of(response) == [
        (
            "error",
            "At most 3 rows can be selected for this action. "
            "Narrow the list by a filter or a search, or select fewer rows.",
        )
    ]
    assert not Task.objects.exists()
    assert not LogEntry.objects.exists()


def test_selection_reads_at_most_one_row_past_the_limit(
    airports: list[Airport], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(1) as queries, pytest.raises(TooManySelected):
        keys(Airport.objects.all(), 3)
    assert "LIMIT 4" in queries.captured_queries[0]["sql"]
    assert keys(Airport.objects.all(), 5) == [airport.pk for airport in airports]


def test_refused_params_are_reported(odd: None, staff: Any, airports: list[Airport]) -> None:
    response = run(client_of(staff("view_airport")), "wrong", airports)
    assert messages_of(response) == [
        ("error", "Not started. number: Must be a whole number."),
    ]
    assert not Task.objects.exists()


def test_duplicate_links_to_the_running_task(
    odd: None, staff: Any, airports: list[Airport]
) -> None:
    client = client_of(staff("view_airport"))
    run(client, "one", airports)
    task = Task.objects.get()
    assert (task.priority, task.unique_key) == (7, "one")
    [(level, text)] = messages_of(run(client, "one", airports))
    assert level == "warning"
    assert "“Export airports” is already running or waiting" in text
    assert f'href="{task.get_absolute_url()}?next=' in text
    assert Task.objects.count() == LogEntry.objects.count() == 1
    [(_, text)] = messages_of(run(client_of(staff("view_airport", name="other")), "one", airports))
    assert "Someone else is running this." in text
    assert str(task.pk) not in text


def test_action_may_return_a_response(odd: None, staff: Any, airports: list[Airport]) -> None:
    assert run(client_of(staff("view_airport")), "ask", airports).content == b"Are you sure?"
    assert not Task.objects.exists()


def test_failing_log_entry_prevents_the_start(
    staff: Any, airports: list[Airport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("no log")

    monkeypatch.setattr(admin.ModelAdmin, "log_addition", fail)
    with pytest.raises(RuntimeError):
        run(client_of(staff("view_airport")), "export_selected", airports)
    assert not Task.objects.exists()


@pytest.mark.urls(__name__)
def test_site_without_task_urls_shows_a_message(staff: Any, airports: list[Airport]) -> None:
    response = run(client_of(staff("view_airport")), "few", airports[:1])
    assert messages_of(response) == [("success", "“Export airports” was started.")]
    assert response["Location"] == f"{LIST}?country=NO"
    assert Task.objects.exists()
