import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.http import HttpRequest
from django.template import Context, RequestContext, Template, context_processors
from django.template.loader import render_to_string
from django.test import RequestFactory
from django.urls import path
from django.utils import timezone, translation
from django.utils.functional import SimpleLazyObject
from pytest_django import DjangoAssertNumQueries, Settings

import tasks_app
from tasks_app.models import Task
from tasks_app.states import TERMINAL_EVENTS, EventType, Status
from tasks_app.templatetags.tasks import progress_bar
from tasks_app.web.display import duration
from tasks_app.web.words import WORDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
XSS = "<script>alert('x')</script>\"><img src=x>"
STATIC = Path(tasks_app.__file__).parent / "static" / "tasks_app"
ENGLISH = {key: str(word) for key, word in WORDS.items()}


def task(**fields: Any) -> Task:
    """Return an unsaved row, running by default."""
    status = fields.get("status", "running")
    began = {"attempt": 1, "started_at": NOW} if status != "pending" else {}
    ended = {"finished_at": NOW} if Status(status).is_terminal else {}
    error = {"error_type": "ValueError", "error_message": "no"} if status == "failed" else {}
    defaults = {"name": "shop.tasks.Import", "status": status, "created_at": NOW, "run_after": NOW}
    return Task(**(defaults | began | ended | error | fields))


def saved(**fields: Any) -> Task:
    row = task(**fields)
    if row.status == Status.RUNNING:
        row.fencing_token, row.lease_expires_at = uuid4(), NOW
    row.save()
    return row


def request_of(
    user: User | AnonymousUser | None = None, path: str = "/list/?page=2"
) -> HttpRequest:
    request = RequestFactory().get(path)
    if user is not None:
        request.user = user
    return request


def render(source: str, context: Context | dict[str, Any] | None = None) -> str:
    if not isinstance(context, Context):
        context = Context(context or {})
    return Template("{% load tasks %}" + source).render(context)


def bar(row: Task, **context: Any) -> str:
    return render("{% task_progress task %}", {"task": row} | context)


def part(html: str, name: str) -> str:
    """Return the text of a part."""
    found = re.search(rf'<(\w+) data-part="{name}"[^>]*>(.*?)</\1>', html, re.DOTALL)
    assert found, f"no {name} in {html}"
    return unescape(found[2])


class Parsed(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def __getitem__(self, tag: str) -> dict[str, str | None]:
        [attributes] = [attributes for name, attributes in self.tags if name == tag]
        return attributes

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


#: The attributes in which django-csp, and Django from 6.0, keep the nonce of a request.
NONCES = ["csp_nonce", "_csp_nonce"] if hasattr(context_processors, "csp") else ["csp_nonce"]


class LazyNonce(SimpleLazyObject):
    """Like the nonces of django-csp and Django 6: false until used."""

    def __bool__(self) -> bool:
        return False


class TestNonce:
    @pytest.mark.parametrize("attribute", NONCES)
    def test_nonce_of_the_request(self, attribute: str) -> None:
        """It does not depend on context processors."""
        request = request_of()
        setattr(request, attribute, LazyNonce(lambda: "a&b"))
        for html in (
            bar(task(), request=request),
            render("{% task_assets %}", {"request": request}),
            render("{% task_list tasks %}", {"request": request, "tasks": []}),
            render_to_string("tasks_app/base.html", request=request)
            + render("{% task_assets %}", {"request": request}),
        ):
            tags = Parsed(html)
            assets = tags.all("script") + tags.all("link")
            assert len(assets) > 1
            assert {tag["nonce"] for tag in assets} == {"a&b"}

    def test_nonce_of_the_context(self) -> None:
        assert Parsed(bar(task(), csp_nonce="abc"))["script"]["nonce"] == "abc"

    def test_without_nonce(self) -> None:
        assert "nonce" not in bar(task(), request=request_of())


class TestStates:
    @pytest.mark.parametrize(
        ("row", "state", "value", "percent"),
        [
            (task(status="pending"), "Waiting to start", "0.0", ""),
            (task(status="pending", progress=0.5), "Waiting to start", "0.0", ""),
            (task(), "Running", None, ""),
            (task(progress=0.0), "Running", "0.0", "0%"),
            (task(progress=0.29), "Running", "0.29", "29%"),
            (task(progress=0.999), "Running", "0.999", "99%"),
            (task(attempt=2, max_attempts=3), "Running, attempt 2 of 3", None, ""),
            (task(progress=0.5, cancel_requested_at=NOW), "Cancelling…", "0.5", "50%"),
            (task(status="completed", progress=1.0), "Completed", "1.0", "100%"),
            (task(status="failed", progress=0.4), "Failed", "0.4", "40%"),
            (task(status="failed"), "Failed", "0.0", ""),
            (task(status="cancelled", cancel_requested_at=NOW), "Cancelled", "0.0", ""),
        ],
    )
    def test_text_and_value_of_each_state(
        self, row: Task, state: str, value: str | None, percent: str
    ) -> None:
        html = bar(row)
        assert part(html, "state") == state
        assert part(html, "percent") == percent
        assert Parsed(html)["progress"].get("value") == value
        assert Parsed(html)["task-progress"]["status"] == row.status

    def test_every_status_has_a_text_and_an_icon(self) -> None:
        styles = (STATIC / "task-progress.css").read_text()
        for status in Status:
            assert part(bar(task(status=status)), "state")
            assert re.search(
                rf'\[status="{status}"\](, \[data-cancelling\]\))? \[data-part="icon"', styles
            )

    def test_delayed_task_shows_its_time(self) -> None:
        row = task(status="pending", run_after=NOW + timedelta(hours=1))
        assert progress_bar(row, now=NOW)["state"] == "Waiting until 03/01/2026 1 p.m. UTC"
        with timezone.override("Europe/Paris"):
            assert progress_bar(row, now=NOW)["state"] == "Waiting until 03/01/2026 2 p.m. CET"
        assert progress_bar(row, now=NOW)["wait"] == 3600.0
        assert progress_bar(row, now=NOW + timedelta(hours=2))["state"] == "Waiting to start"

    def test_retry_shows_its_time(self) -> None:
        row = task(
            status="pending", attempt=1, max_attempts=3, run_after=NOW + timedelta(minutes=5)
        )
        assert progress_bar(row, now=NOW)["state"] == (
            "Attempt 1 of 3 failed, trying again at 03/01/2026 12:05 p.m. UTC"
        )

    def test_clock_behind_the_database_shows_no_delay(self) -> None:
        row = task(status="pending")
        assert progress_bar(row, now=NOW - timedelta(minutes=5))["state"] == "Waiting to start"

    @pytest.mark.parametrize("words", [None, "The file is empty."])
    def test_failure_shows_only_the_public_error(self, words: str | None) -> None:
        row = task(status="failed", error_message="no file", error_traceback="File x.py")
        row.public_error = words
        html = bar(row)
        assert part(html, "error") == (words or "The task failed.")
        assert not [hidden for hidden in ("no file", "x.py", row.error_type) if hidden in html]

    @pytest.mark.parametrize("status", ["pending", "running", "completed", "cancelled"])
    def test_no_error_without_a_failure(self, status: str) -> None:
        assert '<div data-part="error" dir="auto" hidden></div>' in bar(task(status=status))

    def test_duration_of_a_task(self) -> None:
        later = NOW + timedelta(minutes=2, seconds=5)
        assert progress_bar(task(), now=later)["duration"] == "2 min 5 s"
        assert progress_bar(task(status="pending"), now=later)["duration"] == ""
        ended = task(status="completed", finished_at=later)
        assert progress_bar(ended, now=NOW + timedelta(days=9))["duration"] == "took 2 min 5 s"

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "0 s"),
            (59.9, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (86_400 * 3 + 3600 * 4, "3 d 4 h"),
        ],
    )
    def test_duration(self, seconds: float, words: str) -> None:
        assert duration(seconds, ENGLISH) == words


class TestMarkup:
    def test_bar_is_labelled(self) -> None:
        tags = Parsed(bar(task()))
        label = tags["progress"]["aria-labelledby"]
        assert [tag["id"] for tag in tags.all("span") if "id" in tag] == [label]
        assert tags["task-progress"]["aria-labelledby"] == label
        assert tags["task-progress"]["role"] == "group"

    def test_ids_are_unique_if_a_task_is_shown_twice(self) -> None:
        html = render("{% task_progress task %}{% task_progress task %}", {"task": task()})
        ids = [tag["id"] for tag in Parsed(html).all("span") if "id" in tag]
        assert len(set(ids)) == 2

    def test_label(self) -> None:
        row = task()
        assert part(bar(row), "label") == "shop.tasks.Import"
        html = render("{% task_progress task label='Orders' url='/orders/' %}", {"task": row})
        assert part(html, "label") == '<a href="/orders/">Orders</a>'

    def test_data_for_the_script(self) -> None:
        row = task(progress=0.25, attempt=2, max_attempts=3, cancel_requested_at=NOW)
        tag = Parsed(bar(row))["task-progress"]
        assert tag["task-id"] == str(row.pk)
        assert tag["data-attempt"] == "2"
        assert tag["data-max-attempts"] == "3"
        assert tag["data-started"] == "2026-03-01T12:00:00+00:00"
        assert "data-cancelling" in tag
        assert float(tag["data-elapsed"] or "") > 0

    def test_numbers_for_the_script_are_not_localized(self, settings: Settings) -> None:
        settings.USE_THOUSAND_SEPARATOR = True
        with translation.override("de"):
            tag = Parsed(bar(task(progress=0.5, attempt=2000, max_attempts=5000)))
        assert tag["progress"]["value"] == "0.5"
        assert tag["task-progress"]["data-attempt"] == "2000"

    def test_announcer_is_polite_and_empty(self) -> None:
        assert '<div data-part="announcer" aria-live="polite"></div>' in bar(task())

    def test_refresh_link_works_without_javascript(self) -> None:
        """The stylesheet hides it if the script runs.

        `noscript` does not help if a policy blocks the script.
        """
        assert '<a data-part="refresh" href="">Refresh</a>' in bar(task())
        assert "refresh" not in bar(task(status="completed"))

    def test_everything_is_escaped(self) -> None:
        row = task(
            status="failed",
            name=XSS,
            progress_text=XSS,
            error_type=XSS,
            error_message=XSS,
            public_error=XSS,
        )
        for source in (
            "{% task_progress task %}",
            "{% task_progress task label=xss url=xss %}",
            "{% autoescape off %}{% task_progress task %}{% endautoescape %}",
        ):
            html = render(source, {"task": row, "xss": XSS})
            tags = Parsed(html)
            assert tags.all("img") == []
            assert [tag.get("src") for tag in tags.all("script")] == [
                "/static/tasks_app/task-progress.js"
            ]
            assert part(html, "text") == XSS
            assert part(html, "error") == XSS

    def test_nothing_is_inline(self) -> None:
        html = bar(task(owner_id=1), request=request_of(User(pk=1)))
        for name, attributes in Parsed(html).tags:
            assert "style" not in attributes
            assert not any(attribute.startswith("on") for attribute in attributes)
            assert name != "script" or attributes["src"]

    def test_texts_come_from_the_server(self) -> None:
        words = json.loads(Parsed(bar(task()))["template"]["data-words"] or "")
        assert words == ENGLISH

    def test_argument_must_be_a_task(self) -> None:
        row = task()
        with pytest.raises(TypeError) as caught:
            render("{% task_progress task %}", {"task": row.pk})
        assert str(caught.value) == (
            f"{{% task_progress %}} takes a Task, not {row.pk!r} (UUID). Pass the row itself, such "
            f"as Task.objects.get(pk=…), and check the name of the variable."
        )
        with pytest.raises(TypeError, match=re.escape("takes a Task, not '' (str).")):
            render("{% task_progress misspelt %}")
        with pytest.raises(TypeError, match=re.escape("takes a Task, not TaskInfo(")):
            render("{% task_progress info %}", {"info": row.info()})


class TestAssets:
    ASSETS = (
        '<link rel="stylesheet" href="/static/tasks_app/task-progress.css">',
        '<script type="module" src="/static/tasks_app/task-progress.js" '
        'data-live="/static/tasks_app/live.js" data-state="/static/tasks_app/task-state.js">'
        "</script>",
        "<template data-task-progress ",
    )

    def once(self, html: str, bars: int) -> None:
        assert html.count("<task-progress ") == bars
        for asset in self.ASSETS:
            assert html.count(asset) == 1
            assert html.index(asset) < html.index("<task-progress ")

    def test_assets_once_in_a_loop(self) -> None:
        rows = [task(), task(), task()]
        self.once(
            render("{% for task in rows %}{% task_progress task %}{% endfor %}", {"rows": rows}), 3
        )

    def test_assets_once_across_includes_and_inheritance(self, templates: Path) -> None:
        (templates / "base.html").write_text(
            "{% load tasks %}{% block top %}{% endblock %}{% block main %}{% endblock %}"
            "{% task_progress task %}"
        )
        (templates / "one.html").write_text("{% load tasks %}{% task_progress task %}")
        (templates / "page.html").write_text(
            "{% extends 'base.html' %}{% load tasks %}"
            "{% block top %}{% include 'one.html' %}"
            "{% include 'one.html' with task=task only %}{% endblock %}"
            "{% block main %}{% for _ in 'ab' %}{% include 'one.html' %}{% endfor %}"
            "{% task_progress task %}{% endblock %}"
        )
        for request in (None, request_of(User(pk=1))):
            self.once(render_to_string("page.html", {"task": task(owner_id=1)}, request), 6)

    def test_assets_once_per_page(self) -> None:
        template = Template("{% load tasks %}{% task_progress task %}")
        row = task(owner_id=1)
        context, request = Context({"task": row}), request_of(User(pk=1))
        for _ in range(2):
            self.once(template.render(context), 1)
            self.once(template.render(RequestContext(request, {"task": row})), 1)

    def test_urls_and_limits(self, settings: Settings) -> None:
        settings.TASK_STREAM_MAX_TASKS = 1500
        settings.TASK_STREAM_KEEPALIVE_SECONDS = 20
        settings.USE_THOUSAND_SEPARATOR = True
        page = Parsed(bar(task()))["template"]
        assert page["data-streams-url"] == "/tasks/stream/"
        assert page["data-statuses-url"] == "/tasks/status/"
        assert page["data-max-tasks"] == "1500"
        assert page["data-keepalive"] == "20.0"

    @pytest.mark.urls(__name__)
    def test_site_without_task_urls_shows_a_static_bar(self) -> None:
        html = bar(task(owner_id=1), request=request_of(User(pk=1)))
        tags = Parsed(html)
        assert tags["link"]
        assert tags.all("script") == tags.all("template") == tags.all("form") == []
        assert tags.all("noscript") == []
        assert part(html, "refresh")

    @pytest.fixture
    def templates(self, tmp_path: Path, settings: Settings) -> Iterator[Path]:
        [engine] = settings.TEMPLATES
        settings.TEMPLATES = [engine | {"DIRS": [tmp_path]}]
        return tmp_path


urlpatterns = [path("", request_of, name="nothing-of-ours")]


class TestCancel:
    def test_owner_gets_a_button(self) -> None:
        row = task(owner_id=1)
        html = render(
            "{% task_progress task %}",
            RequestContext(request_of(User(pk=1)), {"task": row}),
        )
        tags = Parsed(html)
        assert tags["form"]["method"] == "post"
        assert tags["form"]["action"] == f"/tasks/{row.pk}/cancel/"
        fields = {field["name"]: field["value"] for field in tags.all("input")}
        assert fields["next"] == "/list/?page=2"
        assert fields["csrfmiddlewaretoken"]
        assert tags["button"]["type"] == "submit"

    def test_csrf_token_needs_no_context_processor(self) -> None:
        html = bar(task(owner_id=1), request=request_of(User(pk=1)))
        assert 'name="csrfmiddlewaretoken"' in html

    @pytest.mark.parametrize(
        "row",
        [
            task(owner_id=1, status="completed"),
            task(owner_id=1, status="failed"),
            task(owner_id=1, status="cancelled"),
            task(owner_id=1, cancel_requested_at=NOW),
        ],
        ids=lambda row: str(row.status),
    )
    def test_no_button_if_finished_or_already_requested(self, row: Task) -> None:
        assert "<form" not in bar(row, request=request_of(User(pk=1)))

    @pytest.mark.parametrize("user", [None, AnonymousUser(), User(pk=1, is_active=False)])
    def test_no_button_without_an_active_user(self, user: User | AnonymousUser | None) -> None:
        assert "<form" not in bar(task(owner_id=1), request=request_of(user))

    def test_no_button_without_a_request(self) -> None:
        assert "<form" not in bar(task(owner_id=1), user=User(pk=1))

    @pytest.mark.django_db
    def test_other_users_need_the_permission(self) -> None:
        owner, other, operator = (
            User.objects.create_user(name) for name in ("owner", "other", "operator")
        )
        operator.user_permissions.add(
            Permission.objects.get(codename="cancel_task", content_type__app_label="tasks_app")
        )
        row = saved(owner=owner)
        buttons = [
            "<form" in bar(row, request=request_of(user)) for user in (owner, other, operator)
        ]
        assert buttons == [True, False, True]

    def test_button_can_be_left_out(self) -> None:
        html = render(
            "{% task_progress task cancel=False %}",
            {"task": task(owner_id=1), "request": request_of(User(pk=1))},
        )
        assert "<form" not in html

    @pytest.mark.django_db
    def test_list_needs_no_extra_queries(
        self, django_assert_num_queries: DjangoAssertNumQueries
    ) -> None:
        operator = User.objects.create_user("operator")
        owner = User.objects.create_user("owner")
        rows = [saved(owner=owner) for _ in range(5)]
        # Only the permissions of the user and of their groups, once.
        with django_assert_num_queries(2):
            render(
                "{% for task in rows %}{% task_progress task %}{% endfor %}",
                RequestContext(request_of(operator), {"rows": rows}),
            )


class TestScript:
    """The lists that the script repeats, because it cannot import them, match `states`."""

    SOURCE = (STATIC / "task-progress.js").read_text() + (STATIC / "task-state.js").read_text()

    def ends(self) -> dict[str, str]:
        listed = re.search(r"TERMINAL_EVENTS = \{(.*?)\}", self.SOURCE, re.DOTALL)
        assert listed
        return dict(re.findall(r'(\w+): "(\w+)"', listed[1]))

    def test_script_knows_every_event(self) -> None:
        named = set(re.findall(r'"(task_\w+|progress_update)"', self.SOURCE)) | set(self.ends())
        assert named == set(EventType.values)

    def test_script_knows_the_status_of_each_end(self) -> None:
        ends = {event.value: event.value.removeprefix("task_") for event in TERMINAL_EVENTS}
        assert self.ends() == ends
        assert set(ends.values()) <= set(Status.values)

    def test_script_uses_exactly_the_given_texts(self) -> None:
        words = set(re.findall(r"\bwords\.(\w+)(?!\w*\()", self.SOURCE))
        # Some are selected by name.
        words |= set(re.findall(r'"(\w+)"', self.SOURCE)) & set(WORDS)
        assert words == set(WORDS)

    def test_text_is_never_inserted_as_html(self) -> None:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", self.SOURCE)

    def test_styles_apply_only_to_the_elements(self) -> None:
        styles = (STATIC / "task-progress.css").read_text()
        styles = re.sub(r"/\*.*?\*/", "", styles, flags=re.DOTALL)
        styles = re.sub(r"@keyframes [^{]+\{(\s*\w+ \{[^}]*\})*\s*\}", "", styles)
        for selectors in re.findall(r"([^{};]+)\{", styles):
            if not selectors.strip().startswith("@"):
                for selector in re.split(r",(?![^(]*\))", selectors):
                    assert re.match(
                        r'(\[data-theme="\w+"\] )?task-(progress|list)\b', selector.strip()
                    )
