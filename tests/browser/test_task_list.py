"""Lists of tasks: a list of own tasks shows new ones, wherever they are started."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tasks_app.models import Task

from .pages import PATIENT, bar, look, part, pass_time, shows
from .scripted import OWNER, Serve, Site, task

pytestmark = pytest.mark.browser

XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def listed(serve: Serve, *rows: Task, tag: str = "{% task_list tasks follow=True %}") -> Site:
    """Serve a page that lists the site's tasks, newest first, and follows new ones."""
    site = serve(*rows)
    site.template = tag
    return site


def labels(page: Page) -> Any:
    return page.locator("task-list > ol > li [data-part=label]")


def starts(site: Site, row: Task) -> None:
    """Start a task elsewhere: it is the newest one, and the stream reports it."""
    site.rows = {str(row.pk): row, **site.rows}
    site.streams[-1].send("task_queued", row, run_after=row.run_after.isoformat())


def leave(page: Page, site: Site) -> None:
    """Hide a page, by its installed clock, until it closes its stream."""
    stream = site.stream()
    look(page, away=True)
    page.clock.run_for(30_000)
    site.wait_for(lambda: stream.closed, "a page that nobody sees to close its stream")


def test_task_started_elsewhere_appears_and_moves(page: Page, serve: Serve) -> None:
    old = task(name="old")
    site = listed(serve, old)
    page.add_init_script(PATIENT)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    assert (stream.mine, stream.task_ids, stream.last_event_id) == (True, [], "40")
    stream.progress(old, 0.25)
    shows(page, old, "Running", "0.25")
    new = task(name="new", status="pending")
    starts(site, new)
    expect(labels(page)).to_have_text(["new", "old"])
    expect(page.locator("task-list > [data-part=announcer]")).to_have_text("New task: new")
    stream.send("task_started", new, attempt=1, max_attempts=1)
    stream.progress(new, 0.5, "half")
    shows(page, new, "Running", "0.5", "half")
    shows(page, old, "Running", "0.25")
    stream.send("task_completed", new)
    shows(page, new, "Completed")
    # One stream, which never had to be reopened.
    assert len(site.streams) == 1
    assert site.asked("status") == []


def test_changes_while_a_row_is_fetched_are_not_missed(page: Page, serve: Serve) -> None:
    old, new = task(name="old"), task(name="new", status="pending")
    site = listed(serve, old)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(old, 0.1)
    shows(page, old, "Running", "0.1")
    starts(site, new)
    # Before the page has fetched the row, which is still as it was rendered.
    stream.send("task_started", new, attempt=1, max_attempts=1)
    stream.send("task_failed", new, error={"type": "E", "message": "quick"})
    shows(page, new, "Failed")
    expect(part(page, new, "error")).to_have_text("E: quick")


def test_late_committed_fact_reaches_a_newer_row(page: Page, serve: Serve) -> None:
    """On PostgreSQL a smaller id can be committed later."""
    old, new = task(name="old"), task(name="new", status="pending")
    site = listed(serve, old)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.since = "2000"
    starts(site, new)
    stream.send("task_started", new, "1990", attempt=1, max_attempts=1)
    stream.send("task_completed", new, "1991")
    shows(page, new, "Completed")


def test_list_hidden_for_long_finds_new_tasks(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.clock.install()
    page.goto(f"{site.url}/page/")
    leave(page, site)
    new = task(name="new", progress=0.4)
    site.rows = {str(new.pk): new, **site.rows}
    look(page)
    page.clock.run_for(1_000)
    expect(labels(page)).to_have_text(["new", "old"])
    shows(page, new, "Running", "0.4")


def test_many_simultaneous_starts_appear_in_order(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    new = [task(name=f"new {number}", status="pending") for number in range(5)]
    site.rows = {str(row.pk): row for row in reversed(new)} | site.rows
    stream.raw("".join(stream.event("task_queued", row, run_after="") for row in new))
    expect(labels(page)).to_have_text(["new 4", "new 3", "new 2", "new 1", "new 0", "old"])
    assert len(site.asked("page")) <= 3


def test_new_tasks_are_announced_at_intervals(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream()
    announcer = page.locator("task-list > [data-part=announcer]")
    for number, said in enumerate(["0", "0", "0"]):
        starts(site, task(name=f"new {number}", status="pending"))
        pass_time(page, site, lambda number=number: len(site.asked("page")) > number + 1, most=5)
        expect(labels(page).first).to_have_text(f"new {number}")
        expect(announcer).to_have_text(f"New task: new {said}")
    page.clock.run_for(10_000)
    expect(announcer).to_have_text("New task: new 1, new 2")


def test_first_task_replaces_the_empty_list(page: Page, serve: Serve) -> None:
    site = listed(serve)
    page.goto(f"{site.url}/page/")
    expect(page.get_by_text("No tasks yet.")).to_be_visible()
    site.stream()
    new = task(name="first", status="pending")
    starts(site, new)
    expect(labels(page)).to_have_text(["first"])
    expect(page.get_by_text("No tasks yet.")).to_be_hidden()
    site.stream().send("task_started", new, attempt=1, max_attempts=1)
    shows(page, new, "Running")


def test_released_task_is_not_new(page: Page, serve: Serve) -> None:
    here, elsewhere = task(name="here"), task(name="elsewhere")
    site = listed(serve, here)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_queued", elsewhere, run_after="2026-01-01T00:00:00Z", reason="released")
    stream.send("task_started", elsewhere, attempt=1, max_attempts=1)
    stream.send("task_queued", here, run_after="2026-01-01T00:00:00Z")
    stream.progress(here, 0.5)
    shows(page, here, "Running", "0.5")
    page.clock.run_for(2_000)
    # If it had requested the page, then before this.
    page.evaluate("fetch('/elsewhere/')")
    site.wait_for(lambda: site.asked("elsewhere"), "the page to ask for another")
    assert len(site.asked("page")) == 1


def test_finished_rows_make_room(page: Page, serve: Serve) -> None:
    running, ended = task(name="running"), task(name="ended", status="completed")
    site = listed(
        serve, running, ended, tag="{% task_list tasks follow=True limit=2 form='compact' %}"
    )
    page.goto(f"{site.url}/page/")
    site.stream()
    starts(site, task(name="new", status="pending"))
    expect(labels(page)).to_have_text(["new", "running"])
    # The row of a running task is not removed while a user watches it.
    starts(site, task(name="newer", status="pending"))
    expect(labels(page)).to_have_text(["newer", "new", "running"])


def test_tasks_of_others_on_the_page_are_polled(page: Page, serve: Serve) -> None:
    mine, other = task(name="mine"), task(name="other", owner_id=OWNER.pk + 1)
    site = listed(serve, mine, other)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream()
    expect(part(page, other, "hint")).to_have_text("Updates every few seconds.")
    expect(part(page, mine, "hint")).to_be_hidden()
    other.progress = 0.75
    page.clock.run_for(4_000)
    shows(page, other, "Running", "0.75")
    assert site.asked("status")[-1].task_ids == [str(other.pk)]
    assert len(site.streams) == 1


def test_list_that_does_not_follow_streams_its_own_tasks(page: Page, serve: Serve) -> None:
    row = task()
    site = listed(serve, row, tag="{% task_list tasks %}")
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    assert (stream.mine, stream.task_ids, stream.last_event_id) == (False, [str(row.pk)], "")
    stream.send("task_completed", row)
    shows(page, row, "Completed")
    site.wait_for(lambda: stream.closed, "the page to close its stream")


def test_following_list_stays_open_after_all_tasks_have_ended(page: Page, serve: Serve) -> None:
    row = task(name="old")
    site = listed(serve, row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_completed", row)
    shows(page, row, "Completed")
    starts(site, task(name="new", status="pending"))
    expect(labels(page)).to_have_text(["new", "old"])
    assert not stream.closed
    page.locator("task-list").evaluate("list => list.remove()")
    site.wait_for(lambda: stream.closed, "the stream of nobody to close")


def test_page_that_cannot_be_fetched_is_reported(page: Page, serve: Serve) -> None:
    row = task()
    site = listed(serve, row)
    page.goto(f"{site.url}/page/")
    site.stream()
    site.answers["page"] = (500, {})
    starts(site, task(name="new", status="pending"))
    notice = page.locator("task-list > [data-part=news]")
    expect(notice).to_have_text("There are new tasks. Reload the page to see them.")
    del site.answers["page"]
    starts(site, task(name="newer", status="pending"))
    expect(labels(page)).to_have_text(["newer", "new", "shop.tasks.Import"])
    expect(notice).to_be_hidden()


def test_unknown_news_is_not_reported_after_an_absence(page: Page, serve: Serve) -> None:
    """For example a laptop that wakes up before its network does."""
    site = listed(serve, task())
    page.clock.install()
    page.goto(f"{site.url}/page/")
    leave(page, site)
    site.answers["page"] = (500, {})
    look(page)
    page.clock.run_for(1_000)
    site.wait_for(lambda: len(site.asked("page")) == 2, "the page to look for new tasks")
    site.stream(2)
    expect(page.locator("task-list > [data-part=news]")).to_be_hidden()


def test_list_inserted_again_finds_new_tasks(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.goto(f"{site.url}/page/")
    site.stream()
    before = page.locator("task-list").evaluate("list => list.outerHTML")
    starts(site, task(name="new", status="pending"))
    expect(labels(page)).to_have_text(["new", "old"])
    page.locator("task-list").evaluate("(list, html) => { list.outerHTML = html; }", before)
    expect(labels(page)).to_have_text(["new", "old"])


@pytest.mark.parametrize("status", [302, 401, 403])
def test_list_of_a_signed_out_user_says_so(page: Page, serve: Serve, status: int) -> None:
    """Even if no bar is left to say it."""
    site = listed(serve, task(status="completed"))
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.answers |= {"stream": (403, {}), "page": (status, {})}
    stream.drop()
    pass_time(page, site, lambda: len(site.asked("page")) > 1, most=60)
    page.clock.run_for(1_000)
    said = "Live updates stopped: you may have been signed out. Reload the page."
    expect(page.locator("task-list > [data-part=news]")).to_have_text(said)
    expect(page.locator("task-list > [data-part=announcer]")).to_have_text(said)


def test_list_does_not_grow_for_ever(page: Page, serve: Serve) -> None:
    """And keeps a row that has the keyboard focus."""
    rows = [task(name=f"old {number}", status="completed") for number in range(20)]
    site = listed(serve, *rows, tag="{% task_list tasks follow=True form='compact' %}")
    page.goto(f"{site.url}/page/")
    site.stream()
    starts(site, task(name="new", status="pending"))
    expect(labels(page).first).to_have_text("new")
    expect(labels(page)).to_have_count(20)
    last = page.locator("task-list li").last
    last.evaluate("row => { row.tabIndex = -1; row.focus(); }")
    starts(site, task(name="newer", status="pending"))
    expect(labels(page).first).to_have_text("newer")
    expect(labels(page)).to_have_count(21)
    expect(last).to_be_focused()


def test_text_of_new_rows_is_never_inserted_as_html(page: Page, serve: Serve) -> None:
    site = listed(serve, task(), tag="{% task_list tasks follow=True form='card' %}")
    page.goto(f"{site.url}/page/")
    site.stream()
    new = task(name=XSS, progress_text=XSS)
    # The row is newer than everything that the stream has sent so far.
    site.since = "9000"
    starts(site, new)
    shows(page, new, "Running", text=XSS)
    expect(page.locator("task-list > [data-part=announcer]")).to_have_text(f"New task: {XSS}")
    assert page.locator("task-list img, task-list script").count() == 0


def test_times_are_in_the_viewers_zone(page: Page, browser: Browser, serve: Serve) -> None:
    row = task()
    site = listed(serve, row)
    with browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB") as context:
        visitor = context.new_page()
        visitor.goto(f"{site.url}/page/")
        site.stream()
        time = visitor.locator("task-list time")
        expect(time).not_to_contain_text("UTC")
        shown = time.evaluate(
            "time => new Intl.DateTimeFormat('en-GB', {timeStyle: 'short'})"
            ".format(new Date(time.dateTime))"
        )
        expect(time).to_contain_text(shown)


def test_list_without_javascript(browser: Browser, serve: Serve) -> None:
    row = task(progress=0.25)
    site = listed(serve, row)
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        shows(page, row, "Running", "0.25")
        expect(page.locator("task-list time")).to_contain_text("UTC")
        expect(bar(page, row).get_by_role("link", name=row.label)).to_have_attribute(
            "href", f"/tasks/{row.pk}/?next=%2Fpage%2F"
        )
