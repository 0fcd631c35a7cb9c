"""Compact bars and cards: log, remaining time, result, and Retry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tasks_app.models import Task
from tasks_app.templatetags.tasks import FORMS
from tasks_app.web.display import time_left
from tasks_app.web.words import WORDS

from .pages import bar, part, pass_time, shows
from .scripted import Serve, Site, task

pytestmark = pytest.mark.browser

XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>{{ 7|add:7 }}"

CARDS = "{% for task in tasks %}{% task_progress task form='card' %}{% endfor %}"
COMPACT = "{% for task in tasks %}{% task_progress task form='compact' %}{% endfor %}"


def line(number: int, message: str, level: str = "info") -> Any:
    return SimpleNamespace(pk=number, data={"level": level, "message": message})


def logged(row: Task, *lines: Any) -> Task:
    """Give a row the newest lines of its log, newest first."""
    row.newest_log_lines = [*lines]  # type: ignore[attr-defined]
    return row


def cards(serve: Serve, *rows: Task) -> Site:
    site = serve(*rows)
    site.template = CARDS
    return site


def log(page: Page, row: Task) -> Any:
    return part(page, row, "log").locator("li")


# The log.


def test_log_continues_from_the_rendered_page(page: Page, serve: Serve) -> None:
    row = logged(task(), line(41, "second", "warning"), line(12, "first"))
    site = cards(serve, row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    # No line is lost between the page and its stream.
    assert stream.last_event_id == "40"
    expect(log(page, row)).to_have_text(["first", "second"])
    # Lines that the page already has come again, because it was rendered earlier.
    stream.send("task_log", row, "41", level="warning", message="second")
    stream.send("task_log", row, "42", level="error", message="third")
    expect(log(page, row)).to_have_text(["first", "second", "third"])
    expect(log(page, row).nth(2)).to_have_attribute("data-level", "error")
    for number in range(43, 47):
        stream.send("task_log", row, str(number), level="info", message=f"line {number}")
    expect(log(page, row)).to_have_text(["third", "line 43", "line 44", "line 45", "line 46"])


def test_page_of_bars_requests_no_past_events(page: Page, serve: Serve) -> None:
    site = serve(task())
    page.goto(f"{site.url}/page/")
    assert site.stream().last_event_id == ""


def test_card_added_later_reopens_the_stream_from_its_cursor(page: Page, serve: Serve) -> None:
    first, second = task(), logged(task(), line(44, "rendered"))
    site = cards(serve, first)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_log", first, "50", level="info", message="one")
    expect(log(page, first)).to_have_text(["one"])
    page.evaluate(
        "window.facts = [];"
        "addEventListener('task-progress:event', ({detail}) => facts.push(detail.data.message))"
    )
    site.rows[str(second.pk)] = second
    site.since = "45"
    page.evaluate(
        "html => document.body.insertAdjacentHTML('beforeend', html)",
        site.render("{% task_progress tasks.1 form='card' assets=False %}"),
    )
    joined = site.stream(2)
    assert joined.last_event_id.split() == ["50", "45"]
    joined.send("task_log", second, "46", level="info", message="meanwhile")
    joined.send("task_log", first, "50", level="info", message="one")
    joined.send("task_log", first, "51", level="info", message="two")
    expect(log(page, first)).to_have_text(["one", "two"])
    expect(log(page, second)).to_have_text(["rendered", "meanwhile"])
    # No fact is reported twice.
    assert page.evaluate("facts") == ["meanwhile", "two"]


FACTS = (
    "window.facts = [];"
    "addEventListener('task-progress:event', ({detail}) =>"
    "  facts.push(detail.data.message ?? detail.eventType))"
)


def test_facts_after_the_end_are_reported_too(page: Page, serve: Serve) -> None:
    """A stream opens with the state. A finished task's facts follow."""
    row, polled = task(), task()
    site = cards(serve, row, polled)
    page.add_init_script(FACTS)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_log", row, "41", level="info", message="one")
    expect(log(page, row)).to_have_text(["one"])
    # Refused for a moment: the page polls, and learns that one task has ended.
    site.answers["stream"] = (502, {})
    polled.status, polled.finished_at = "completed", datetime.now(UTC)
    stream.drop()
    shows(page, polled, "Completed")
    row.status, row.finished_at = "completed", datetime.now(UTC)
    del site.answers["stream"]
    again = site.stream(2)
    assert sorted(again.task_ids) == sorted([str(row.pk), str(polled.pk)])
    again.status(row)
    again.status(polled)
    shows(page, row, "Completed")
    for number in range(41, 44):
        again.send("task_log", row, str(number), level="info", message=f"line {number}")
    again.send("task_log", polled, "44", level="info", message="last words")
    again.send("task_completed", row, "45")
    expect(log(page, row)).to_have_text(["one", "line 42", "line 43"])
    expect(log(page, polled)).to_have_text(["last words"])
    assert not again.closed
    again.send("task_completed", polled, "46")
    site.wait_for(lambda: again.closed, "the page to close its stream")
    assert page.evaluate("facts") == [
        "one", "line 42", "line 43", "last words", "task_completed", "task_completed",
    ]  # fmt: skip


def test_facts_have_new_ids_after_a_failover(page: Page, serve: Serve) -> None:
    """And a task may be in an earlier state again."""
    row = task(max_attempts=2)
    site = cards(serve, row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_started", row, "49@a@@old", attempt=2, max_attempts=2)
    stream.send("task_log", row, "50@a@@old", level="info", message="lost")
    expect(log(page, row)).to_have_text(["lost"])
    shows(page, row, "Running, attempt 2 of 2")
    stream.send("task_status", row, "45@9@@new", **row.info().model_dump(mode="json"))
    stream.send("task_log", row, "46@9@@new", level="info", message="said anew")
    expect(log(page, row)).to_have_text(["lost", "said anew"])
    shows(page, row, "Running")


def test_without_streams_the_page_does_not_wait_for_terminal_facts(
    page: Page, serve: Serve
) -> None:
    row = task()
    site = serve(row)
    site.answers["stream"] = (501, {})
    page.clock.install()
    page.goto(f"{site.url}/page/")
    pass_time(page, site, lambda: len(site.asked("stream")) >= 2)
    row.status, row.finished_at = "completed", datetime.now(UTC)
    pass_time(page, site, lambda: len(site.asked("stream")) >= 3)
    shows(page, row, "Completed")
    page.clock.run_for(1_000)
    asked = len(site.requests)
    page.clock.run_for(120_000)
    assert len(site.requests) == asked
    expect(part(page, row, "hint")).to_be_hidden()


# Remaining time, attempt and result.


def test_card_put_back_gets_the_lines_that_it_missed(page: Page, serve: Serve) -> None:
    row, other = task(), task()
    site = cards(serve, row, other)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    fragment = site.render("{% task_progress tasks.0 form='card' assets=False %}")
    bar(page, row).evaluate("bar => bar.remove()")
    stream.send("task_log", row, "41", level="info", message="missed")
    stream.progress(other, 0.25)
    shows(page, other, "Running", "0.25")
    page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", fragment)
    again = site.stream(2)
    # The server decides which cursor is the earlier one.
    assert again.last_event_id.split() == ["41", site.since]
    again.send("task_log", row, "41", level="info", message="missed")
    expect(part(page, row, "log")).to_contain_text("missed")


def test_remaining_time_is_estimated(page: Page, serve: Serve) -> None:
    began = datetime.now(UTC) - timedelta(hours=10)
    row = task(started_at=began, progress=0.25, max_attempts=3)
    site = cards(serve, row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    expect(part(page, row, "left")).to_have_text("about 30 h left")
    expect(part(page, row, "attempts")).to_have_text("Attempt 1 of 3")
    stream.progress(row, 0.5)
    expect(part(page, row, "left")).to_have_text("about 10 h left")
    stream.send("task_completed", row, result=None)
    shows(page, row, "Completed", "1")
    expect(part(page, row, "left")).to_have_text("")
    expect(part(page, row, "result")).to_be_hidden()


def test_server_and_script_estimate_alike(page: Page, serve: Serve) -> None:
    site = serve(task())
    page.goto(f"{site.url}/page/")
    words = {key: str(word) for key, word in WORDS.items()}
    cases = [
        (ran, value, silent)
        for ran in (1.9, 2, 7.5, 61, 600, 7_200, 90_000, 864_000)
        for value in (None, 0.0, 0.009, 0.01, 1 / 3, 0.5, 0.97, 0.999, 1.0)
        for silent in (0, 1, 9.9, 10, 14, 59, 60, 3_600)
        if silent <= ran
    ]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    server = [
        time_left(
            task(
                started_at=now - timedelta(seconds=ran),
                progress=value,
                progress_at=now - timedelta(seconds=silent),
            ),
            words,
            now,
        )
        for ran, value, silent in cases
    ]
    script = page.evaluate(
        """async ([cases, words]) => {
          const { timeLeft } = await import("/static/tasks_app/task-state.js");
          return cases.map(([ran, value, silent]) => {
            const now = ran * 1000;
            return timeLeft({ value, began: 0, moved: now - silent * 1000 }, words, now);
          });
        }""",
        [cases, words],
    )
    assert script == server
    assert {said.split()[2] for said in server if said} == {"s", "min", "h", "d", "for"}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("done", "done"),
        (0, "0"),
        (False, "false"),
        ([], "[]"),
        ({"rows": 3, "of": ["ö", None]}, '{\n  "rows": 3,\n  "of": [\n    "ö",\n    null\n  ]\n}'),
        ("𝄞" * 2_001, "𝄞" * 1_999 + "…"),
    ],
)
def test_result_is_shown_as_the_server_would_render_it(
    page: Page, serve: Serve, result: Any, shown: str
) -> None:
    row = task()
    ended = task(status="completed", progress=1.0, result=result)
    site = cards(serve, row, ended)
    page.goto(f"{site.url}/page/")
    expect(part(page, row, "result")).to_be_hidden()
    site.stream().send("task_completed", row, result=result)
    expect(part(page, row, "result")).to_be_visible()
    assert part(page, row, "result").text_content() == shown
    assert part(page, ended, "result").text_content() == shown


# Retry.


def test_failed_task_can_be_retried(page: Page, serve: Serve) -> None:
    row = task(progress=0.5)
    site = cards(serve, row)
    site.answers["retry"] = (302, {})
    page.goto(f"{site.url}/page/")
    button = bar(page, row).get_by_role("button", name="Retry")
    expect(button).to_be_hidden()
    site.stream().send("task_failed", row, error={"type": "ValueError", "message": "no"})
    expect(button).to_be_visible()
    expect(bar(page, row).get_by_role("button", name="Cancel")).to_be_hidden()
    button.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_title("Elsewhere")
    [request] = site.asked("retry")
    assert (request.method, request.path) == ("POST", f"/tasks/{row.pk}/retry/")
    assert request.body["csrfmiddlewaretoken"]


@pytest.mark.parametrize("end", ["task_cancelled", "task_completed"])
def test_task_that_did_not_fail_is_not_retried(page: Page, serve: Serve, end: str) -> None:
    row = task()
    site = cards(serve, row)
    page.goto(f"{site.url}/page/")
    site.stream().send(end, row)
    button = bar(page, row).get_by_role("button", name="Retry")
    shows(page, row, "Cancelled" if end == "task_cancelled" else "Completed")
    expect(button).to_be_visible(visible=end == "task_cancelled")


def test_retry_without_javascript(browser: Browser, serve: Serve) -> None:
    failed, running = task(status="failed", error_type="E", error_message="m"), task()
    site = cards(serve, failed, running)
    site.answers["retry"] = (302, {})
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        expect(bar(page, running).get_by_role("button", name="Retry")).to_be_hidden()
        bar(page, failed).get_by_role("button", name="Retry").click()
        expect(page).to_have_title("Elsewhere")
    assert len(site.asked("retry")) == 1


# Every form.


@pytest.mark.parametrize("form", FORMS)
def test_text_is_never_inserted_as_html(page: Page, serve: Serve, form: str) -> None:
    fields = {"name": XSS, "progress_text": XSS}
    row = logged(task(**fields), line(1, XSS, XSS))
    done = task(status="completed", result={XSS: XSS}, **fields)
    failed = task(status="failed", error_type=XSS, error_message=XSS, **fields)
    other = task(**fields)
    site = serve(row, done, failed, other)
    site.template = (
        "{% for task in tasks %}{% task_progress task form='FORM' %}{% endfor %}"
    ).replace("FORM", form)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.5, f"{XSS} live")
    shows(page, row, "Running", "0.5", f"{XSS} live")
    if form == "card":
        stream.send("task_log", row, level=XSS, message=f"{XSS} live")
        expect(log(page, row)).to_have_text([XSS, f"{XSS} live"])
    stream.send("task_completed", row, result={XSS: [XSS]})
    stream.send("task_failed", other, error={"type": XSS, "message": XSS})
    shows(page, row, "Completed")
    expect(part(page, other, "error")).to_have_text(f"{XSS}: {XSS}")
    if form == "card":
        expect(part(page, row, "result")).to_contain_text("<script>alert(2)</script>")
        expect(part(page, done, "result")).to_contain_text("<script>alert(2)</script>")
    assert page.locator("task-progress img, task-progress script").count() == 0


@pytest.mark.parametrize("form", FORMS)
def test_forms_on_one_page_share_a_stream(page: Page, serve: Serve, form: str) -> None:
    row = task()
    site = serve(row)
    site.template = (
        "{% task_progress tasks.0 %}{% task_progress tasks.0 form='compact' %}"
        "{% task_progress tasks.0 form='card' %}"
    )
    page.goto(f"{site.url}/page/")
    site.stream().progress(row, 0.25, "a quarter")
    one = page.locator(f'task-progress[data-form="{form}"]')
    expect(one.locator("progress")).to_have_attribute("value", "0.25")
    expect(one.locator("[data-part=percent]")).to_have_text("25%")
    expect(one.locator("[data-part=text]")).to_have_text("a quarter")
    assert len(site.streams) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [320, 1280])
def test_form_fits_its_width(browser: Browser, serve: Serve, form: str, width: int) -> None:
    long = "AVeryLongNameThatHasNoPlaceToBreakAnywhere" * 3
    rows = [
        logged(task(name=long, progress=0.4, progress_text=long, max_attempts=3), line(1, long)),
        task(status="completed", name=long, result=long),
        task(status="failed", name=long, error_type="E", error_message=long),
        task(status="pending", attempt=1, max_attempts=2),
    ]
    site = serve(*rows)
    site.template = (
        "{% for task in tasks %}{% task_progress task form='FORM' label=task.name %}{% endfor %}"
        "{% task_list tasks form='FORM' %}"
    ).replace("FORM", form)
    with browser.new_context(viewport={"width": width, "height": 600}) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        site.stream()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if form == "compact":
            heights = page.locator("main > task-progress").evaluate_all(
                "bars => bars.map((bar) => bar.getBoundingClientRect().height)"
            )
            # One line; on a phone two for the name, and the others below.
            assert max(heights) < (40 if width > 320 else 110)


# Compact.


def test_compact_bar_has_a_name_for_screen_readers(page: Page, serve: Serve) -> None:
    row = task(progress=0.5, progress_text="on")
    site = serve(row)
    site.template = COMPACT
    page.goto(f"{site.url}/page/")
    site.stream()
    expect(page.get_by_role("progressbar", name="shop.tasks.Import")).to_be_visible()
    expect(page.get_by_role("group", name="shop.tasks.Import")).to_be_visible()
    # It is invisible, and takes no space.
    assert part(page, row, "label").bounding_box()["width"] <= 1  # type: ignore[index]
    expect(page.get_by_role("button")).to_have_count(0)
    site.stream().send("task_failed", row, error={"type": "E", "message": "why"})
    shows(page, row, "Failed", "0.5")
    expect(part(page, row, "error")).to_have_text("E: why")
    expect(part(page, row, "text")).to_be_hidden()


def test_compact_bar_may_have_a_button(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    site.template = "{% task_progress tasks.0 form='compact' cancel=True label='Mine' %}"
    row.cancel_requested_at = None
    site.answers["cancel"] = lambda _request: (
        200,
        row.info().model_dump(mode="json") | {"cancel_requested": True},
    )
    page.goto(f"{site.url}/page/")
    site.stream()
    expect(page.get_by_text("Mine")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel this task?").click()
    shows(page, row, "Cancelling…")


# Bars added later.


def test_script_may_be_loaded_before_the_first_bar(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    site.template = "{% task_assets %}"
    page.goto(f"{site.url}/page/")
    expect(page.locator("template[data-task-progress]")).to_have_count(1)
    page.evaluate(
        "html => document.querySelector('main').insertAdjacentHTML('beforeend', html)",
        site.render("{% task_progress tasks.0 assets=False %}"),
    )
    site.stream().progress(row, 0.5, "half")
    shows(page, row, "Running", "0.5", "half")
    assert page.locator("link").count() == 1
