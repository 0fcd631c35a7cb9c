"""The admin's page of a task in a real Chromium: its log and the keyboard focus."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from tasks_app.models import Task
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim
from tasks_app.tasks.progress import LogLine
from tests import rows
from tests.browser.test_admin import WITHIN, enforce_trusted_types, log_in, operator
from tests.harness import Web, eventually

__all__ = ["operator"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

STREAM = "**/tasks/stream/**"


@pytest.fixture
def show(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> Callable[[Task], None]:
    """Open the page of a task."""
    web = start_web()
    log_in(context, web, operator)

    def show(task: Task) -> None:
        url = f"{web.url}{reverse('admin:tasks_app_task_change', args=[task.pk])}"
        enforce_trusted_types(page, url)
        page.goto(url)

    return show


def say(claim: Claim, *messages: str) -> None:
    lifecycle.log({claim: [LogLine("info", message) for message in messages]})


def log(page: Page) -> Locator:
    return page.locator(".task-log li span")


def wait_for_facts(page: Page, count: int) -> None:
    """Wait until the timeline has this many facts. The rest of the page is then up to date too."""
    expect(page.locator(".task-timeline li")).to_have_count(count, timeout=WITHIN)


def test_lines_from_both_sources_are_shown_once(page: Page, show: Callable[[Task], None]) -> None:
    task, claim = rows.claimed()
    say(claim, "one")
    page.route(STREAM, lambda route: route.fulfill(status=501, body="no"))
    show(task)
    say(claim, "two")
    # The page polled the line, and the stream brings it again.
    expect(log(page)).to_have_text(["one", "two"], timeout=WITHIN)
    page.unroute(STREAM)
    say(claim, "three")
    expect(log(page)).to_have_text(["one", "two", "three"], timeout=WITHIN)


def test_no_line_is_lost_before_the_stream_opens(page: Page, show: Callable[[Task], None]) -> None:
    task, claim = rows.claimed()
    say(claim, *(f"line {number}" for number in range(200)))
    late = iter([("late", "later")])

    def be_late(route: Route) -> None:
        say(claim, *next(late, ()))
        # Playwright calls from its own context, where Django opens another connection.
        connection.close()
        route.continue_()

    page.route(STREAM, be_late)
    show(task)
    expect(log(page)).to_have_count(202, timeout=WITHIN)
    expect(log(page).nth(200)).to_have_text("late")
    expect(log(page).nth(201)).to_have_text("later")


def test_full_log_drops_its_earliest_line(page: Page, show: Callable[[Task], None]) -> None:
    task, claim = rows.claimed()
    say(claim, "one", "two")
    show(task)
    earlier = page.get_by_role("link", name="Show earlier lines")
    expect(earlier).to_be_hidden()
    page.evaluate("document.querySelector('[data-task-page]').dataset.logMost = 3")
    say(claim, "three", "four", "five")
    expect(log(page)).to_have_text(["three", "four", "five"], timeout=WITHIN)
    earlier.click()
    expect(log(page)).to_have_text(["one", "two"], timeout=WITHIN)


def test_missed_lines_are_reported(page: Page, show: Callable[[Task], None]) -> None:
    """Without a stream, more lines may be written between two requests than one request returns."""
    task, claim = rows.claimed()
    page.route(STREAM, lambda route: route.fulfill(status=501, body="no"))
    say(claim, "old")
    show(task)
    say(claim, *(f"line {number}" for number in range(203)))
    expect(log(page).last).to_have_text("line 202", timeout=WITHIN)
    expect(log(page).first).to_have_text("line 3")
    page.get_by_role("link", name="Show earlier lines").click()
    expect(log(page)).to_have_text(["old", "line 0", "line 1", "line 2"], timeout=WITHIN)


def test_reader_of_the_log_keeps_the_scroll_position(
    page: Page, show: Callable[[Task], None]
) -> None:
    task = rows.enqueued()
    [taken] = lifecycle.claim(rows.worker(), 1)
    claim = rows.claim_of(taken)
    say(claim, *(f"line {number}" for number in range(100)))
    show(task)
    lines = page.locator(".task-log")
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    assert lines.evaluate(at_end)
    say(claim, "followed")
    expect(log(page).last).to_have_text("followed", timeout=WITHIN)
    assert lines.evaluate(at_end)

    lines.evaluate("log => { log.scrollTop = 0; }")
    say(claim, "not followed")
    expect(log(page).last).to_have_text("not followed", timeout=WITHIN)
    lifecycle.complete({claim: None})
    wait_for_facts(page, 3)
    assert lines.evaluate("log => log.scrollTop") == 0


def test_keyboard_focus_stays_while_the_page_changes(
    page: Page, show: Callable[[Task], None]
) -> None:
    task = rows.enqueued()
    show(task)
    wait_for_facts(page, 1)
    page.get_by_role("button", name="Cancel", exact=True).focus()
    page.evaluate("window.button = document.activeElement")
    [taken] = lifecycle.claim(rows.worker(), 1)
    wait_for_facts(page, 2)
    # It is the same node, so a click in progress is not lost either.
    assert page.evaluate("button.isConnected && document.activeElement === button")
    lifecycle.complete({rows.claim_of(taken): None})
    wait_for_facts(page, 3)
    assert page.evaluate("document.activeElement.dataset.refresh") == "acts"
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible()


def test_failed_read_of_an_end_is_repeated(page: Page, show: Callable[[Task], None]) -> None:
    """No stream reports a finished task again, so the page itself must retry."""
    task, claim = rows.claimed()
    show(task)
    itself, failed = f"**/{task.pk}/change/", []

    def fail(route: Route) -> None:
        failed.append(route)
        route.fulfill(status=502, body="no")

    page.route(itself, fail)
    lifecycle.complete({claim: 7})
    expect(page.locator("task-progress")).to_have_attribute("status", "completed", timeout=WITHIN)
    failed.clear()
    eventually(lambda: page.evaluate("true") and failed, what="the page looks at itself")
    page.unroute(itself)
    expect(page.locator('[data-refresh="facts"]')).to_contain_text("Completed", timeout=WITHIN)


def test_request_without_an_answer_is_abandoned(page: Page, show: Callable[[Task], None]) -> None:
    task = rows.enqueued()
    hung: list[Route] = []

    def hang_once(route: Route) -> None:
        if hung or route.request.resource_type != "fetch":
            route.continue_()
        else:
            hung.append(route)

    page.route(f"**/{task.pk}/change/", hang_once)
    show(task)
    eventually(lambda: page.evaluate("true") and hung, what="the page looks at itself")
    lifecycle.claim(rows.worker(), 1)
    wait_for_facts(page, 2)


def test_bar_shows_times_in_the_pages_zone(
    browser: Browser, operator: User, start_web: Callable[..., Web]
) -> None:
    """The zone is the site's, as everywhere in the admin, not the viewer's."""
    task = rows.saved(run_after=timezone.now() + timedelta(hours=2))
    web = start_web()
    with browser.new_context(timezone_id="America/New_York", locale="en-US") as context:
        log_in(context, web, operator)
        page = context.new_page()
        page.goto(f"{web.url}{reverse('admin:tasks_app_task_change', args=[task.pk])}")
        there = re.compile(rf"\b{task.run_after:%-I:%M}\s{task.run_after:%p}")
        expect(page.locator('task-progress [data-part="state"]')).to_have_text(
            there, timeout=WITHIN
        )
        expect(page.get_by_text("Times are in UTC.")).to_be_visible()


def test_time_zone_unknown_to_the_browser(page: Page, show: Callable[[Task], None]) -> None:
    task, claim = rows.claimed()

    def elsewhere(route: Route) -> None:
        answer = route.fetch()
        html = answer.text()
        assert 'data-zone="UTC"' in html
        route.fulfill(response=answer, body=html.replace('data-zone="UTC"', 'data-zone="PKT"'))

    # Only the page itself, not its update requests: one may be in progress when the test ends.
    page.route(f"**/{task.pk}/change/", elsewhere, times=1)
    show(task)
    say(claim, "hello")
    expect(log(page)).to_have_text(["hello"], timeout=WITHIN)
