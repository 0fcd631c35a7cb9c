"""Lists of tasks: one's own follow each other as they are started, wherever that is."""

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
    """A page that lists the site's tasks, the newest first, and follows new ones."""
    site = serve(*rows)
    site.template = tag
    return site


def labels(page: Page) -> Any:
    return page.locator("task-list > ol > li [data-part=label]")


def starts(site: Site, row: Task) -> None:
    """Start a task elsewhere: it is the newest, and the stream tells of it."""
    site.rows = {str(row.pk): row, **site.rows}
    site.streams[-1].send("task_queued", row, run_after=row.run_after.isoformat())


def leave(page: Page, site: Site) -> None:
    """Turn away from a page, by its installed clock, for so long that it closes its stream."""
    stream = site.stream()
    look(page, away=True)
    page.clock.run_for(30_000)
    site.wait_for(lambda: stream.closed, "a page that nobody sees to close its stream")


def test_a_task_that_is_started_elsewhere_appears_and_moves(page: Page, serve: Serve) -> None:
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
    # One stream, which never had to be opened anew.
    assert len(site.streams) == 1
    assert site.asked("status") == []


def test_what_happens_while_the_row_is_fetched_is_not_missed(page: Page, serve: Serve) -> None:
    old, new = task(name="old"), task(name="new", status="pending")
    site = listed(serve, old)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(old, 0.1)
    shows(page, old, "Running", "0.1")
    starts(site, new)
    # Before the page has fetched the row, which is as it was rendered.
    stream.send("task_started", new, attempt=1, max_attempts=1)
    stream.send("task_failed", new, error={"type": "E", "message": "quick"})
    shows(page, new, "Failed")
    expect(part(page, new, "error")).to_have_text("E: quick")


def test_a_fact_that_was_committed_late_reaches_a_row_of_a_greater_id(
    page: Page, serve: Serve
) -> None:
    """On PostgreSQL an id that was drawn earlier can be committed later."""
    old, new = task(name="old"), task(name="new", status="pending")
    site = listed(serve, old)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.since = "2000"
    starts(site, new)
    stream.send("task_started", new, "1990", attempt=1, max_attempts=1)
    stream.send("task_completed", new, "1991")
    shows(page, new, "Completed")


def test_a_list_that_nobody_saw_for_long_finds_what_is_new(page: Page, serve: Serve) -> None:
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


def test_many_that_start_together_appear_together_and_in_order(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    new = [task(name=f"new {number}", status="pending") for number in range(5)]
    site.rows = {str(row.pk): row for row in reversed(new)} | site.rows
    stream.raw("".join(stream.event("task_queued", row, run_after="") for row in new))
    expect(labels(page)).to_have_text(["new 4", "new 3", "new 2", "new 1", "new 0", "old"])
    assert len(site.asked("page")) <= 3


def test_new_tasks_are_announced_now_and_then(page: Page, serve: Serve) -> None:
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


def test_the_first_task_replaces_the_empty_list(page: Page, serve: Serve) -> None:
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


def test_what_a_worker_hands_back_is_no_news(page: Page, serve: Serve) -> None:
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
    # Had it asked for the page, then before this.
    page.evaluate("fetch('/elsewhere/')")
    site.wait_for(lambda: site.asked("elsewhere"), "the page to ask for another")
    assert len(site.asked("page")) == 1


def test_rows_that_have_ended_make_room(page: Page, serve: Serve) -> None:
    running, ended = task(name="running"), task(name="ended", status="completed")
    site = listed(
        serve, running, ended, tag="{% task_list tasks follow=True limit=2 form='compact' %}"
    )
    page.goto(f"{site.url}/page/")
    site.stream()
    starts(site, task(name="new", status="pending"))
    expect(labels(page)).to_have_text(["new", "running"])
    # What still runs is not taken away from who watches it.
    starts(site, task(name="newer", status="pending"))
    expect(labels(page)).to_have_text(["newer", "new", "running"])


def test_tasks_of_others_on_the_page_are_asked_for(page: Page, serve: Serve) -> None:
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


def test_a_list_that_follows_nobody_streams_its_own_tasks(page: Page, serve: Serve) -> None:
    row = task()
    site = listed(serve, row, tag="{% task_list tasks %}")
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    assert (stream.mine, stream.task_ids, stream.last_event_id) == (False, [str(row.pk)], "")
    stream.send("task_completed", row)
    shows(page, row, "Completed")
    site.wait_for(lambda: stream.closed, "the page to close its stream")


def test_a_list_that_follows_goes_on_when_all_has_ended(page: Page, serve: Serve) -> None:
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


def test_a_page_that_cannot_be_fetched_says_that_there_is_news(page: Page, serve: Serve) -> None:
    row = task()
    site = listed(serve, row)
    page.goto(f"{site.url}/page/")
    site.stream()
    site.answers["page"] = (500, {})
    starts(site, task(name="new", status="pending"))
    news = page.locator("task-list > [data-part=news]")
    expect(news).to_have_text("There are new tasks. Reload the page to see them.")
    del site.answers["page"]
    starts(site, task(name="newer", status="pending"))
    expect(labels(page)).to_have_text(["newer", "new", "shop.tasks.Import"])
    expect(news).to_be_hidden()


def test_who_was_away_is_not_told_of_news_that_nobody_knows_of(page: Page, serve: Serve) -> None:
    """As a laptop that wakes up before its network does."""
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


def test_a_list_that_is_put_in_anew_finds_what_is_new(page: Page, serve: Serve) -> None:
    site = listed(serve, task(name="old"))
    page.goto(f"{site.url}/page/")
    site.stream()
    before = page.locator("task-list").evaluate("list => list.outerHTML")
    starts(site, task(name="new", status="pending"))
    expect(labels(page)).to_have_text(["new", "old"])
    page.locator("task-list").evaluate("(list, html) => { list.outerHTML = html; }", before)
    expect(labels(page)).to_have_text(["new", "old"])


@pytest.mark.parametrize("status", [302, 401, 403])
def test_a_list_of_somebody_who_signed_out_says_so(page: Page, serve: Serve, status: int) -> None:
    """Also where no bar is left to say it."""
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


def test_a_list_does_not_grow_for_ever(page: Page, serve: Serve) -> None:
    """Nor lets go of a row that a keyboard is at."""
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


def test_text_of_new_rows_is_never_markup(page: Page, serve: Serve) -> None:
    site = listed(serve, task(), tag="{% task_list tasks follow=True form='card' %}")
    page.goto(f"{site.url}/page/")
    site.stream()
    new = task(name=XSS, progress_text=XSS)
    # The row is newer than all that the stream has told by now.
    site.since = "9000"
    starts(site, new)
    shows(page, new, "Running", text=XSS)
    expect(page.locator("task-list > [data-part=announcer]")).to_have_text(f"New task: {XSS}")
    assert page.locator("task-list img, task-list script").count() == 0


def test_times_are_the_viewers(page: Page, browser: Browser, serve: Serve) -> None:
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


def test_without_javascript_it_is_a_list(browser: Browser, serve: Serve) -> None:
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
