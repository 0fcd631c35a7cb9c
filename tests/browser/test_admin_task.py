"""The admin's page of a task in a real Chromium: its log, and a keyboard's place on it."""

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


def told(page: Page, count: int) -> None:
    """Wait until the timeline tells so many facts: then the rest of the page is as new."""
    expect(page.locator(".task-timeline li")).to_have_count(count, timeout=WITHIN)


def test_lines_that_come_by_both_ways_are_shown_once(
    page: Page, show: Callable[[Task], None]
) -> None:
    task, claim = rows.claimed()
    say(claim, "one")
    page.route(STREAM, lambda route: route.fulfill(status=501, body="no"))
    show(task)
    say(claim, "two")
    # The page found it by itself, and the stream brings it again.
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
        # Playwright calls from a context of its own, where Django opens another connection.
        connection.close()
        route.continue_()

    page.route(STREAM, be_late)
    show(task)
    expect(log(page)).to_have_count(202, timeout=WITHIN)
    expect(log(page).nth(200)).to_have_text("late")
    expect(log(page).nth(201)).to_have_text("later")


def test_what_a_full_log_lets_go_of_is_an_earlier_line(
    page: Page, show: Callable[[Task], None]
) -> None:
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


def test_lines_that_nobody_told_of_are_not_passed_over_in_silence(
    page: Page, show: Callable[[Task], None]
) -> None:
    """Where there is no stream, more may be written between two looks than a look shows."""
    task, claim = rows.claimed()
    page.route(STREAM, lambda route: route.fulfill(status=501, body="no"))
    say(claim, "old")
    show(task)
    say(claim, *(f"line {number}" for number in range(203)))
    expect(log(page).last).to_have_text("line 202", timeout=WITHIN)
    expect(log(page).first).to_have_text("line 3")
    page.get_by_role("link", name="Show earlier lines").click()
    expect(log(page)).to_have_text(["old", "line 0", "line 1", "line 2"], timeout=WITHIN)


def test_a_reader_of_the_log_is_left_where_they_are(
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
    told(page, 3)
    assert lines.evaluate("log => log.scrollTop") == 0


def test_a_keyboard_keeps_its_place_while_the_page_changes(
    page: Page, show: Callable[[Task], None]
) -> None:
    task = rows.enqueued()
    show(task)
    told(page, 1)
    page.get_by_role("button", name="Cancel", exact=True).focus()
    page.evaluate("window.button = document.activeElement")
    [taken] = lifecycle.claim(rows.worker(), 1)
    told(page, 2)
    # The same node, so that a click under way is not lost either.
    assert page.evaluate("button.isConnected && document.activeElement === button")
    lifecycle.complete({rows.claim_of(taken): None})
    told(page, 3)
    assert page.evaluate("document.activeElement.dataset.refresh") == "acts"
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible()


def test_an_end_that_could_not_be_looked_at_is_looked_at_again(
    page: Page, show: Callable[[Task], None]
) -> None:
    """Nothing else would: of a task that has ended, no stream tells any more."""
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


def test_an_answer_that_never_comes_is_not_waited_for(
    page: Page, show: Callable[[Task], None]
) -> None:
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
    told(page, 2)


def test_the_bar_tells_times_in_the_zone_of_the_page(
    browser: Browser, operator: User, start_web: Callable[..., Web]
) -> None:
    """It is the site's, as everywhere in the admin, and not the viewer's."""
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


def test_a_time_zone_that_the_browser_does_not_know(
    page: Page, show: Callable[[Task], None]
) -> None:
    task, claim = rows.claimed()

    def elsewhere(route: Route) -> None:
        answer = route.fetch()
        html = answer.text()
        assert 'data-zone="UTC"' in html
        route.fulfill(response=answer, body=html.replace('data-zone="UTC"', 'data-zone="PKT"'))

    # The page itself, and not its looks: one may be under way when the test ends.
    page.route(f"**/{task.pk}/change/", elsewhere, times=1)
    show(task)
    say(claim, "hello")
    expect(log(page)).to_have_text(["hello"], timeout=WITHIN)
