"""Pages that are older than they seem, hidden, or assembled from parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from pytest_django import Settings

from .pages import bar, look, part, runs, shows
from .scripted import Serve, task

pytestmark = pytest.mark.browser

#: While a machine sleeps, performance.now() stands still on Linux and macOS, but Date.now() does
#: not.
SLEEPY = """
const real = Date.now;
let slept = 0;
Date.now = () => real() + slept;
window.sleep = (milliseconds) => { slept += milliseconds; };
"""
HIDDEN = 'Object.defineProperty(document, "hidden", { value: true, configurable: true });'


def test_page_restored_by_a_script_counts_from_the_true_start(page: Page, serve: Serve) -> None:
    row = task(started_at=datetime.now(UTC), progress=0.5)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    site.stream().progress(row, 0.6)
    shows(page, row, "Running", "0.6")
    # htmx's history and Turbo may restore what they kept much later.
    later = row.started_at + timedelta(hours=2)
    info = row.info().model_dump(mode="json")
    site.answers["status"] = (200, {"tasks": [info], "time": later.isoformat()})
    page.evaluate("document.body.innerHTML = document.body.innerHTML")
    expect(part(page, row, "time")).to_contain_text("2 h 0 min")


def test_machine_that_slept_counts_from_the_true_start(page: Page, serve: Serve) -> None:
    """Even if its connection survived the sleep."""
    row = task(started_at=datetime.now(UTC), progress=0.5)
    site = serve(row)
    page.add_init_script(SLEEPY)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.6)
    shows(page, row, "Running", "0.6")
    site.greets = False
    page.evaluate("sleep(8 * 3600 * 1000)")
    stream.raw("event: keep-alive\ndata:\n\n")
    site.stream(2).status(row, at=row.started_at + timedelta(hours=8))
    expect(part(page, row, "time")).to_contain_text("8 h 0 min")


def test_hidden_tab_opens_its_stream_when_first_shown(page: Page, serve: Serve) -> None:
    row = task(progress=0.5)
    site = serve(row)
    page.clock.install()
    page.add_init_script(HIDDEN)
    page.goto(f"{site.url}/page/")
    runs(page)
    page.clock.run_for(10_000)
    assert not site.streams
    assert not site.asked("status")
    look(page)
    site.stream().progress(row, 0.6)
    shows(page, row, "Running", "0.6")


def test_task_that_stops_reporting_is_marked(page: Page, serve: Serve, settings: Settings) -> None:
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 3_600
    row = task(started_at=datetime.now(UTC) - timedelta(seconds=60), progress=0.5)
    site = serve(row)
    site.template = "{% for task in tasks %}{% task_progress task form='card' %}{% endfor %}"
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream().progress(row, 0.75)
    shows(page, row, "Running", "0.75")
    left = part(page, row, "left")
    expect(left).to_have_text("about 20 s left")
    page.clock.run_for(10_000)
    expect(left).to_have_text("about 10 s left")
    page.clock.run_for(30_000)
    expect(left).to_contain_text("no progress for 4")


def test_server_time_is_used(page: Page, serve: Serve) -> None:
    """The viewer's clock is an hour ahead, and the server sends no Date header."""
    row = task(started_at=datetime.now(UTC) - timedelta(seconds=5))
    site = serve(row)
    site.answers["stream"] = (501, {})
    page.clock.install(time=datetime.now(UTC) + timedelta(hours=1))
    page.goto(f"{site.url}/page/")
    runs(page)
    page.clock.run_for(20_000)
    assert site.asked("status")
    expect(part(page, row, "time")).not_to_contain_text("h")


def test_large_numbers_in_a_result_keep_their_digits(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    site.template = "{% for task in tasks %}{% task_progress task form='card' %}{% endfor %}"
    page.goto(f"{site.url}/page/")
    result = {"id": 9007199254740993, "ratio": 1.0, "googol": 10**400, "half": 0.5}
    stream = site.stream()
    stream.send("task_completed", row, result=result, progress={"value": 1.0, "text": ""})
    live = part(page, row, "result")
    expect(live).to_contain_text("9007199254740993")
    said = live.text_content()
    row.status, row.result, row.finished_at = "completed", result, datetime.now(UTC)
    page.reload()
    expect(live).to_have_text(said or "")


def test_parts_of_a_page_have_unique_ids_and_separate_lists(page: Page, serve: Serve) -> None:
    """They are rendered separately, as components and htmx fragments are."""
    old, new = task(name="old"), task(name="new", status="pending")
    site = serve(old)
    parts = [
        "{% task_list tasks follow=True %}",
        "{% task_list tasks follow=True form='compact' %}",
        "{% task_progress tasks.0 %}",
        "{% task_progress tasks.0 %}",
    ]
    whole = site.render
    site.render = lambda template=None: "".join(map(whole, parts))  # type: ignore[method-assign]
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(old, 0.5)
    expect(bar(page, old)).to_have_count(4)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(({ id }) => id)")
    assert len(ids) == len(set(ids)) > 0
    site.rows = {str(new.pk): new, **site.rows}
    stream.send("task_queued", new, run_after=new.run_after.isoformat())
    lists = page.locator("task-list")
    for index, form in enumerate(["bar", "compact"]):
        rows = lists.nth(index).locator("task-progress")
        expect(rows).to_have_count(2)
        assert [row.get_attribute("data-form") for row in rows.all()] == [form, form]
