"""The forms of a task and lists of tasks, as the server renders them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.http import HttpRequest
from django.template import RequestContext
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone, translation
from pytest_django import DjangoAssertNumQueries

from tasks_app.live.cursor import Cursor
from tasks_app.models import Task, TaskEvent
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.tasks.progress import LogLine
from tasks_app.templatetags.tasks import FORMS, LIST_LENGTH, LOG_LINES
from tasks_app.web import display
from tests.rows import claimed, ended, enqueued, saved
from tests.templatetags.test_tasks import ENGLISH, NOW, XSS, Parsed, part, render, request_of, task

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def render_for(source: str, user: User | AnonymousUser, **context: Any) -> str:
    return render(source, RequestContext(request_of(user), context))


def card(row: Task, user: User | AnonymousUser | None = None) -> str:
    return render_for("{% task_progress task form='card' %}", user or AnonymousUser(), task=row)


def messages_after(since: str | None) -> list[str]:
    """Return the messages that a stream resumed at this cursor still has to send."""
    until = Cursor.now("default")
    facts = Cursor.parse(since or "").rest(TaskEvent.primary.all(), until)
    return [fact.data["message"] for fact in facts]


class TestForms:
    def test_unknown_form_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not a form") as caught:
            render("{% task_progress task form='line' %}", {"task": task()})
        assert str(caught.value) == (
            "'line' is not a form of a task. Choose one of bar, compact, card."
        )

    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_has_the_parts_that_the_script_updates(self, form: str) -> None:
        html = render("{% task_progress task form=form %}", {"task": task(), "form": form})
        assert Parsed(html)["task-progress"]["data-form"] == form
        for name in ("label", "icon", "state", "percent", "text", "error", "notice", "hint"):
            part(html, name)
        assert Parsed(html)["progress"]["max"] == "1"

    def test_bar_is_the_default_and_needs_no_query(
        self, django_assert_num_queries: DjangoAssertNumQueries
    ) -> None:
        with django_assert_num_queries(0):
            html = render("{% task_progress task %}", {"task": task()})
        assert Parsed(html)["task-progress"]["data-form"] == "bar"
        assert "data-since" not in Parsed(html)["task-progress"]

    def test_compact_has_no_button_by_default(self) -> None:
        row = task(owner_id=1)
        user = User(pk=1)
        assert "<form" not in render_for("{% task_progress task form='compact' %}", user, task=row)
        tag = "{% task_progress task form='compact' cancel=True %}"
        assert "<form" in render_for(tag, user, task=row)

    def test_compact_hides_a_default_label(self) -> None:
        def label(source: str) -> dict[str, str | None]:
            tags = Parsed(render(source, {"task": task()})).all("span")
            [label] = [tag for tag in tags if tag.get("data-part") == "label"]
            return label

        assert "data-quiet" in label("{% task_progress task form='compact' %}")
        assert "data-quiet" not in label("{% task_progress task form='compact' label='A' %}")
        assert "data-quiet" not in label("{% task_progress task form='compact' url='/' %}")
        assert "data-quiet" not in label("{% task_progress task %}")

    def test_own_task_is_marked(self) -> None:
        for owner, mine in ((1, True), (2, False), (None, False)):
            html = render_for("{% task_progress task %}", User(pk=1), task=task(owner_id=owner))
            assert ("data-mine" in Parsed(html)["task-progress"]) is mine
        html = render_for("{% task_progress task %}", AnonymousUser(), task=task())
        assert "data-mine" not in Parsed(html)["task-progress"]

    @pytest.mark.parametrize("form", FORMS)
    def test_everything_is_escaped(self, form: str) -> None:
        row, claim = claimed(name=XSS)
        lifecycle.log({claim: [LogLine(XSS, XSS)]})
        lifecycle.complete({claim: {XSS: XSS}})
        row.refresh_from_db()
        failed = saved(Status.FAILED, error_type=XSS, error_message=XSS, progress_text=XSS)
        for source in (
            "{% task_progress task form=form label=xss url=xss %}"
            "{% task_progress failed form=form %}",
            "{% autoescape off %}{% task_progress task form=form %}"
            "{% task_progress failed form=form %}{% task_list tasks form=form %}"
            "{% endautoescape %}",
        ):
            html = render(
                source,
                {"task": row, "failed": failed, "tasks": [row], "form": form, "xss": XSS},
            )
            assert Parsed(html).all("img") == []
            assert len(Parsed(html).all("script")) == 1

    @pytest.mark.parametrize("form", FORMS)
    def test_nothing_is_inline(self, form: str, ada: User) -> None:
        html = render_for("{% task_list form=form %}", ada, form=form)
        html += render_for("{% task_progress t form=form %}", ada, form=form, t=saved(owner=ada))
        for name, attributes in Parsed(html).tags:
            assert "style" not in attributes
            assert not any(attribute.startswith("on") for attribute in attributes)
            assert name != "script" or attributes["src"]


class TestCard:
    def test_shows_the_newest_log_lines(self) -> None:
        row, claim = claimed()
        lines = [LogLine("warning", f"line {number}") for number in range(LOG_LINES + 2)]
        lifecycle.log({claim: lines})
        html = card(row)
        levels = [tag["data-level"] for tag in Parsed(html).all("li")]
        assert levels == ["warning"] * LOG_LINES
        ids = [int(tag["data-id"] or 0) for tag in Parsed(html).all("li")]
        assert ids == sorted(ids)
        assert "line 1<" not in html
        assert f"line {LOG_LINES + 1}<" in html

    @pytest.mark.django_db(transaction=True)
    def test_stream_resumes_from_the_rendered_page(self) -> None:
        row, claim = claimed()
        html = render(
            "{% task_progress task form='card' %}{% task_progress task form='card' %}",
            {"task": row},
        )
        lifecycle.log({claim: [LogLine("info", "later")]})
        since = {tag["data-since"] for tag in Parsed(html).all("task-progress")}
        assert len(since) == 1
        assert messages_after(since.pop()) == ["later"]

    def test_shows_remaining_time_and_attempt(self) -> None:
        started = timezone.now() - timedelta(hours=4)
        html = card(task(started_at=started, progress=0.5, max_attempts=2))
        assert part(html, "left") == "about 4 h left"
        assert part(html, "attempts") == "Attempt 1 of 2"
        html = card(saved(Status.COMPLETED, result={"rows": 3}))
        assert part(html, "left") == part(html, "attempts") == ""
        assert part(html, "result") == '{\n  "rows": 3\n}'

    @pytest.mark.parametrize(
        ("row", "attempts"),
        [
            (task(), ""),
            (task(max_attempts=3), "Attempt 1 of 3"),
            # The state already shows the attempt.
            (task(max_attempts=3, attempt=2), ""),
            (task(max_attempts=3, attempt=2, cancel_requested_at=NOW), "Attempt 2 of 3"),
            (task(status="pending", max_attempts=3, attempt=1), ""),
            (task(status="failed", max_attempts=3, attempt=3), "Attempt 3 of 3"),
            (task(status="cancelled", max_attempts=3, attempt=0), ""),
        ],
    )
    def test_attempts(self, row: Task, attempts: str) -> None:
        assert display.attempts(row, ENGLISH) == attempts

    @pytest.mark.parametrize(
        ("result", "text"),
        [
            (None, ""),
            ("plain", "plain"),
            (3, "3"),
            ("x" * 3_000, "x" * 1_999 + "…"),
            ({"ö": [1]}, '{\n  "ö": [\n    1\n  ]\n}'),
        ],
    )
    def test_result(self, result: Any, text: str) -> None:
        assert display.result(task(status="completed", result=result)) == text
        assert display.result(task(result=result)) == ""

    def test_numbers_for_the_script_are_not_localized(self, settings: Any) -> None:
        settings.USE_THOUSAND_SEPARATOR = True
        row, claim = claimed()
        Task.objects.filter(pk=row.pk).update(result=None)
        lifecycle.log({claim: [LogLine("info", "one")]})
        event = row.events.order_by("-id")[0]
        row.newest_log_lines = [event]  # type: ignore[attr-defined]
        event.pk = 123456
        with translation.override("de"):
            assert Parsed(card(row))["li"]["data-id"] == "123456"

    def test_retry_is_for_permitted_users_and_shown_when_legal(self, ada: User) -> None:
        operator = User(pk=99)
        operator._perm_cache = {"tasks_app.retry_task"}  # type: ignore[attr-defined]
        for status, hidden in (
            (Status.PENDING, True),
            (Status.RUNNING, True),
            (Status.COMPLETED, True),
            (Status.FAILED, False),
            (Status.CANCELLED, False),
        ):
            row = saved(status, owner=ada)
            assert 'data-part="retry"' not in card(row, ada)
            [form] = [
                tag
                for tag in Parsed(card(row, operator)).all("form")
                if tag["data-part"] == "retry"
            ]
            assert form["action"] == f"/tasks/{row.pk}/retry/"
            assert ("hidden" in form) is hidden

    def test_retried_task_links_to_the_new_one(self, ada: User) -> None:
        row = ended(Status.FAILED, owner=ada)
        new = task_service.retry_task(row.pk)
        html = card(row, ada)
        [link] = [tag for tag in Parsed(html).all("a") if tag.get("data-part") == "retried"]
        assert link["href"] == f"/tasks/{new.task_id}/"


class TestList:
    def test_own_tasks_are_listed_newest_first(self, ada: User) -> None:
        other = saved(owner=User.objects.create_user("bob"))
        rows = [saved(owner=ada, age=timedelta(minutes=age)) for age in (5, 1, 3)]
        html = render_for("{% task_list %}", ada)
        ids = [tag["task-id"] for tag in Parsed(html).all("task-progress")]
        assert ids == [str(rows[index].pk) for index in (1, 2, 0)]
        assert str(other.pk) not in html
        assert "hidden" in next(tag for tag in Parsed(html).all("p") if tag["data-part"] == "empty")

    def test_viewer_of_all_tasks_sees_only_own_ones(self, ada: User) -> None:
        saved(owner=ada)
        assert "<task-progress" not in render_for("{% task_list %}", User(pk=7, is_superuser=True))

    def test_empty_list_has_a_message(self, ada: User) -> None:
        html = render_for("{% task_list %}", ada)
        assert '<p data-part="empty">No tasks yet.</p>' in html
        # And the assets that are needed when the first task appears.
        assert len(Parsed(html).all("script")) == 1

    @pytest.mark.parametrize("user", [None, AnonymousUser()])
    def test_anonymous_user_sees_and_follows_nothing(self, user: Any) -> None:
        saved()
        html = render("{% task_list %}", {"request": request_of(user)})
        assert "<task-progress" not in html
        assert "data-follow" not in Parsed(html)["task-list"]
        assert "No tasks yet." in render("{% task_list %}")

    def test_list_has_a_limit(self, ada: User) -> None:
        for _ in range(LIST_LENGTH + 1):
            saved(owner=ada)
        assert render_for("{% task_list %}", ada).count("<task-progress") == LIST_LENGTH
        html = render_for("{% task_list limit=3 %}", ada)
        assert html.count("<task-progress") == 3
        assert Parsed(html)["task-list"]["data-limit"] == "3"

    def test_given_tasks_are_shown_in_their_order(self, ada: User) -> None:
        rows = [saved() for _ in range(3)]
        for tasks in (rows, tuple(rows), Task.objects.filter(pk__in=[row.pk for row in rows])):
            html = render_for("{% task_list tasks %}", ada, tasks=tasks)
            assert html.count("<task-progress") == 3
            assert "data-follow" not in Parsed(html)["task-list"]
            assert "data-since" not in Parsed(html)["task-list"]
        html = render_for("{% task_list tasks limit=2 form='compact' %}", ada, tasks=rows)
        forms = [tag["data-form"] for tag in Parsed(html).all("task-progress")]
        assert forms == ["compact"] * 2

    @pytest.mark.django_db(transaction=True)
    def test_stream_resumes_from_the_rendered_page(self, ada: User) -> None:
        _, claim = claimed(owner=ada)
        follows = Parsed(render_for("{% task_list %}", ada))["task-list"]
        lifecycle.log({claim: [LogLine("info", "later")]})
        assert messages_after(follows["data-since"]) == ["later"]

    def test_follow(self, ada: User) -> None:
        follows = Parsed(render_for("{% task_list %}", ada))["task-list"]
        assert "data-follow" in follows
        assert (
            "data-follow"
            not in Parsed(render_for("{% task_list follow=False %}", ada))["task-list"]
        )
        page = Parsed(render_for("{% task_list tasks follow=True %}", ada, tasks=[]))
        assert "data-follow" in page["task-list"]

    def test_rows_link_to_their_pages_and_back(self, ada: User) -> None:
        row = saved(owner=ada)
        html = render_for("{% task_list %}", ada)
        assert f'<a href="/tasks/{row.pk}/?next=%2Flist%2F%3Fpage%3D2">' in html
        assert f'<time datetime="{row.created_at.isoformat()}">' in html

    @pytest.mark.urls(__name__)
    def test_site_without_task_urls_has_no_links(self, ada: User) -> None:
        saved(owner=ada)
        html = render_for("{% task_list %}", ada)
        assert html.count("<task-progress") == 1
        assert Parsed(html).all("script") == []

    @pytest.mark.parametrize("form", FORMS)
    def test_number_of_queries_is_constant(self, ada: User, form: str) -> None:
        def queries(source: str, tasks: Any = None) -> int:
            with CaptureQueriesContext(connection) as captured:
                render_for(source, User.objects.get(pk=ada.pk), form=form, tasks=tasks)
            return len(captured)

        def both() -> tuple[int, int]:
            own = queries("{% task_list form=form %}")
            of_page = queries("{% task_list tasks form=form %}", list(Task.objects.all()))
            return own, of_page

        ended(Status.FAILED, owner=ada)
        enqueued(owner=ada)
        few = both()
        for _ in range(4):
            Task.objects.filter(status=Status.PENDING).delete()
            ended(Status.FAILED, owner=ada)
        for _ in range(4):
            enqueued(owner=ada)
        assert both() == few
        assert max(few) <= 9

    def test_large_columns_are_not_read(self, ada: User) -> None:
        saved(Status.COMPLETED, owner=ada, result="r", params={"p": 1})
        for form, read in (("bar", False), ("card", True)):
            with CaptureQueriesContext(connection) as captured:
                render_for("{% task_list form=form %}", ada, form=form)
            sql = next(one["sql"] for one in captured if "progress_text" in one["sql"])
            assert ('"result"' in sql) is read
            assert '"params"' not in sql
            assert '"error_traceback"' not in sql


class TestAssets:
    def test_assets_can_be_loaded_early(self) -> None:
        html = render("{% task_assets %}{% task_assets %}")
        tags = Parsed(html)
        assert tags["link"]["href"] == "/static/tasks_app/task-progress.css"
        assert tags["script"]["src"] == "/static/tasks_app/task-progress.js"
        assert tags["template"]["data-streams-url"] == "/tasks/stream/"
        assert "<task-progress" not in html

    def test_assets_are_loaded_once(self) -> None:
        html = render("{% task_assets %}{% task_progress task %}{% task_list %}", {"task": task()})
        assert len(Parsed(html).all("script")) == 1

    def test_assets_can_be_left_out(self) -> None:
        html = render("{% task_progress task assets=False %}", {"task": task()})
        assert html.strip().startswith("<task-progress")
        assert Parsed(html).all("link") == Parsed(html).all("script") == []


def nothing(_request: HttpRequest) -> None:
    """A view that is never called."""


urlpatterns = [path("", nothing)]
