"""The admin's list of tasks in a real Chromium: its rows, buttons and announcements."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Failure
from tests import rows
from tests.browser.pages import look
from tests.browser.test_admin import LIST, WITHIN, is_live, line, log_in, operator, said, shows
from tests.harness import Web, eventually

__all__ = ["operator"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

STREAM = "**/tasks/stream/**"
SIGNED_OUT = "Live updates stopped: you may have been signed out. Reload the page."

#: The parts that a row shows, read from a document.
SHOWN = """(page) => Object.fromEntries(
  [...page.querySelectorAll("template[data-task]")].map(({ dataset, parentNode }) => {
    const row = parentNode.closest("tr");
    const parts = [...row.querySelectorAll("[data-part], button")].map((part) => [
      part.dataset.part ?? part.dataset.act,
      part.dataset.part ? part.textContent : "",
      part.hidden,
      part.dataset.status ?? "",
      part.hasAttribute("data-cancelling"),
      part.localName === "progress" && part.hasAttribute("value") ? part.value : null,
    ]);
    return [dataset.task, parts];
  })
)"""


@pytest.fixture
def web(start_web: Callable[..., Web]) -> Web:
    # Tests advance their page's clock by half a minute. A silent stream must not look broken then.
    return start_web(TASK_STREAM_KEEPALIVE_SECONDS="15")


@pytest.fixture
def show(page: Page, context: BrowserContext, operator: User, web: Web) -> Callable[..., None]:
    """Open the list as an operator, or as another user."""

    def show(query: str = "", *, user: User = operator, live: bool = True) -> None:
        log_in(context, web, user)
        page.goto(f"{web.url}{LIST}{query}")
        if live:
            is_live(page)

    return show


@pytest.fixture
def banner(page: Page) -> Locator:
    return page.locator('[data-part="banner"]')


def button(page: Page, task_id: object, name: str) -> Locator:
    return line(page, task_id).get_by_role("button", name=name)


def cancel(page: Page, task_id: object) -> None:
    button(page, task_id, "Cancel").click()
    page.get_by_role("button", name="Yes, cancel").click()


def order(page: Page) -> Any:
    return page.evaluate(
        "() => [...document.querySelectorAll('template[data-task]')].map((row) => row.dataset.task)"
    )


def is_signed_out(page: Page, banner: Locator) -> None:
    expect(banner).to_have_text(SIGNED_OUT, timeout=WITHIN)
    state = page.locator('[data-part="live-state"]')
    expect(state).to_have_attribute("data-live", "off")
    expect(state).to_be_hidden()
    expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()


def test_script_renders_a_row_like_the_server(page: Page, show: Callable[..., None]) -> None:
    here = rows.worker()
    now = timezone.now()
    long_ago = timedelta(hours=2, minutes=5, seconds=20)
    _again, claim = rows.claimed(max_attempts=2)
    lifecycle.retry({claim: Failure("OSError", "disk full", "", long_ago)})
    for status in Status:
        rows.saved(status, age=long_ago, name=f"shop.tasks.{status.label}")
    running = {"age": long_ago, "worker": here, "progress_text": "half of it"}
    alive = {"lease_expires_at": now + timedelta(minutes=5)}
    rows.saved(Status.RUNNING, progress=0.5, attempt=2, max_attempts=3, **running, **alive)
    rows.saved(Status.RUNNING, cancel_requested_at=now, **running)
    lost = rows.saved(Status.RUNNING, progress=0.5, **running)
    rows.lapse(lost, timedelta(minutes=1))
    rows.saved(Status.CANCELLED, stuck=True, started_at=now - long_ago, attempt=1)
    rows.saved(run_after=now + long_ago)
    rows.saved(Status.COMPLETED, started_at=now - long_ago, finished_at=now)
    # Everything is wrong until the script updates it.
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
          for (const part of document.querySelectorAll("tr [data-part]:not([data-part=label])")) {
            if (!part.querySelector("[data-part]") && part.localName !== "progress")
              part.textContent = ["lost", "stuck"].includes(part.dataset.part)
                ? part.textContent : "wrong";
            if (["lost", "stuck", "error"].includes(part.dataset.part)) part.hidden = !part.hidden;
            if (part.dataset.status) part.dataset.status = "wrong";
            if (part.dataset.part === "status") part.toggleAttribute("data-cancelling");
            if (part.localName === "progress") part.setAttribute("value", "0.123");
          }
          for (const button of document.querySelectorAll("button[data-act]"))
            button.hidden = !button.hidden;
        })"""
    )
    show()
    shown_live = """async () => {
      const html = await (await fetch(location.href)).text();
      return (%s)(new DOMParser().parseFromString(html, "text/html"));
    }"""
    seen: list[Any] = []

    def alike() -> bool:
        seen[:] = [page.evaluate(f"({SHOWN})(document)"), page.evaluate(shown_live % SHOWN)]
        return bool(seen[0] == seen[1])

    try:
        eventually(alike, what="the script shows what the server does")
    except AssertionError:
        here_, there = ({**each} for each in seen)
        differing = [
            (one, other)
            for task_id in there
            for one, other in zip(here_[task_id], there[task_id], strict=True)
            if one != other
        ]
        raise AssertionError(json.dumps(differing, indent=1)) from None
    flat = json.dumps(seen[1])
    for words in (
        "about 2 h left",
        "2 h 5 min",
        "2 of 3",
        "Cancelling",
        "starts in",
        str(here),
        "OSError: disk full",
    ):
        assert words in flat


def test_failed_row_shows_the_error_for_staff(page: Page, show: Callable[..., None]) -> None:
    """The stream carries the text for the task's owner."""
    task, claim = rows.claimed()
    show()
    lifecycle.fail({claim: Failure("OSError", "disk full", public_error="It was not saved.")})
    shows(page, task.pk, "state", "Failed")
    shows(page, task.pk, "error", "OSError: disk full")


def test_rows_show_wait_run_time_worker_and_thread(page: Page, show: Callable[..., None]) -> None:
    task = rows.saved(age=timedelta(hours=2, seconds=30))
    show()
    shows(page, task.pk, "waited", "2 h 0 min")
    shows(page, task.pk, "ran", "")
    [taken] = lifecycle.claim(rows.worker(), 1)
    claim = rows.claim_of(taken)
    shows(page, task.pk, "state", "Running")
    shows(page, task.pk, "waited", "2 h 0 min")
    # Time passes.
    ran = line(page, task.pk).locator('[data-part="ran"]')
    for _ in range(2):
        expect(ran).not_to_have_text(ran.inner_text(), timeout=WITHIN)
    lifecycle.report({claim: said("half", 0.5)})
    left = line(page, task.pk).locator('[data-part="remaining"]')
    expect(left).to_contain_text("s left", timeout=WITHIN)

    badges = line(page, task.pk)
    expect(badges.get_by_text("Heartbeat lost")).to_be_hidden()
    rows.lapse(task, timedelta(minutes=1))
    expect(badges.get_by_text("Heartbeat lost")).to_be_visible(timeout=WITHIN)
    expect(badges.get_by_text("Stuck thread")).to_be_hidden()
    lifecycle.cancel({claim: True})
    expect(badges.get_by_text("Stuck thread")).to_be_visible(timeout=WITHIN)
    expect(badges.get_by_text("Heartbeat lost")).to_be_hidden()
    shows(page, task.pk, "remaining", "")


def test_silent_task_stays_silent_when_its_row_is_read_again(
    page: Page, show: Callable[..., None]
) -> None:
    task, claim = rows.claimed()
    now = timezone.now()
    type(task).objects.filter(pk=task.pk).update(started_at=now - timedelta(minutes=3))
    lifecycle.report({claim: said("half", 0.5)}, now=now - timedelta(seconds=90))
    left = line(page, task.pk).locator('[data-part="remaining"]')
    show()
    expect(left).to_contain_text("no progress for 1 min")
    page.reload()
    is_live(page)
    # The script counts on from the report, not from when the page was loaded.
    first = left.inner_text()
    expect(left).not_to_have_text(first, timeout=WITHIN)
    expect(left).to_contain_text("no progress for")
    lifecycle.report({claim: said("more", 0.6)})
    expect(left).to_contain_text("left", timeout=WITHIN)


def test_rows_keep_their_place(page: Page, show: Callable[..., None]) -> None:
    for _ in range(3):
        rows.enqueued()
    show("?status=pending")
    before = order(page)
    assert len(before) == 3
    [first, second] = lifecycle.claim(rows.worker(), 2)
    shows(page, first.pk, "state", "Running")
    lifecycle.complete({rows.claim_of(second): None})
    shows(page, second.pk, "state", "Completed")
    rows.enqueued()
    expect(page.locator('[data-part="new"]')).to_be_visible(timeout=WITHIN)
    assert order(page) == before


def test_keyboard_focus_stays_on_a_button(page: Page, show: Callable[..., None]) -> None:
    task, _claim = rows.claimed()
    show()
    cancel = button(page, task.pk, "Cancel")
    page.route("**/cancel/", lambda route: route.abort())
    cancel.focus()
    # It asks for confirmation. Escape answers no, and nothing is sent.
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(cancel).to_be_focused()
    expect(page.locator('[data-part="banner"]')).to_be_hidden()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator('[data-part="banner"]')).to_be_visible()
    expect(cancel).to_be_focused()
    page.unroute("**/cancel/")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    shows(page, task.pk, "state", "Cancelling…")
    # The button is gone.
    expect(line(page, task.pk).locator('[data-part="label"]')).to_be_focused()


def test_pressed_button_is_answered_while_updates_are_paused(
    page: Page, show: Callable[..., None], banner: Locator
) -> None:
    late, claim = rows.claimed()
    task = rows.enqueued()
    show()
    page.get_by_role("button", name="Pause updates").click()
    cancel(page, task.pk)
    shows(page, task.pk, "state", "Cancelled")
    expect(banner).to_be_hidden()
    # It has ended, but no stream has sent that.
    lifecycle.complete({claim: None})
    cancel(page, late.pk)
    expect(banner).to_have_text("Couldn't do that: already completed")
    shows(page, late.pk, "state", "Completed")
    expect(page.locator('[data-part="live-state"]')).to_have_text("Paused")


def test_two_equal_messages_are_both_announced(page: Page, show: Callable[..., None]) -> None:
    """Tasks are named after classes, so messages are often equal."""
    tasks = [rows.enqueued(), rows.enqueued()]
    show()
    page.evaluate(
        """() => {
          window.said = [];
          const announcer = document.querySelector('[data-part="announcer"]');
          new MutationObserver(() => said.push(announcer.textContent))
            .observe(announcer, {childList: true, characterData: true, subtree: true});
        }"""
    )
    for task in tasks:
        cancel(page, task.pk)
        shows(page, task.pk, "state", "Cancelled")
    eventually(lambda: page.evaluate("said").count("Noop: Cancelled.") == 2, what="both are said")


def test_repeated_messages_are_announced_rarely(page: Page, show: Callable[..., None]) -> None:
    rows.enqueued()
    page.clock.install()
    show()
    page.evaluate(
        """() => {
          window.said = [];
          const announcer = document.querySelector('[data-part="announcer"]');
          new MutationObserver(() => said.push(announcer.textContent))
            .observe(announcer, {childList: true, characterData: true, subtree: true});
        }"""
    )
    begun = page.evaluate("performance.now()")
    link = page.locator('[data-part="new"]')

    def reads(locator_text: Callable[[], Any], wanted: str) -> None:
        def look() -> bool:
            page.clock.run_for(500)
            return bool(wanted in locator_text())

        eventually(look, what=wanted)

    for wanted in ("Show 1 new task", "Show 2 new tasks", "Show 3 new tasks"):
        rows.enqueued()
        reads(link.text_content, wanted)
    reads(lambda: page.evaluate("said.at(-1) ?? ''"), "Show 3 new tasks")
    elapsed = page.evaluate("performance.now()") - begun
    assert len(page.evaluate("said")) <= 1 + elapsed / 15_000


def test_refusal_shows_its_reason(page: Page, show: Callable[..., None], banner: Locator) -> None:
    viewer = User.objects.create_user("vera", is_staff=True)
    may = {name: Permission.objects.get(codename=name) for name in ("view_task", "cancel_task")}
    viewer.user_permissions.set(may.values())
    task = rows.enqueued()
    show(user=viewer)
    page.route("**/cancel/", lambda route: route.abort())
    cancel(page, task.pk)
    expect(banner).to_contain_text("unexpected server response")
    page.unroute("**/cancel/")

    def forbid(route: Route) -> None:
        # Not before: the list may notice it, and then the button is gone.
        viewer.user_permissions.remove(may["cancel_task"])
        connection.close()  # Playwright calls from its own context.
        route.continue_()

    page.route("**/cancel/", forbid)
    cancel(page, task.pk)
    expect(banner).to_contain_text("you don't have permission")
    # The server renders the row without the button.
    expect(button(page, task.pk, "Cancel")).to_have_count(0)
    is_live(page)
    page.unroute("**/cancel/")
    viewer.user_permissions.add(may["cancel_task"])
    show(user=viewer)

    def sign_out(route: Route) -> None:
        # Not before: the list may notice it, and then leaves its buttons to the browser.
        Session.objects.all().delete()
        # Playwright calls from its own context, where Django opens another connection.
        connection.close()
        route.continue_()

    page.route("**/cancel/", sign_out)
    cancel(page, task.pk)
    is_signed_out(page, banner)
    shows(page, task.pk, "state", "Pending")


def test_button_does_not_hide_the_missing_stream(
    page: Page, show: Callable[..., None], banner: Locator
) -> None:
    task = rows.enqueued()
    page.route(STREAM, lambda route: route.fulfill(status=501, body="no"))
    show(live=False)
    expect(banner).to_contain_text("Checking every few seconds", timeout=WITHIN)
    cancel(page, task.pk)
    shows(page, task.pk, "state", "Cancelled")
    expect(banner).to_contain_text("Checking every few seconds")


def test_list_of_a_signed_out_user_is_not_live(
    page: Page, show: Callable[..., None], banner: Locator
) -> None:
    task = rows.enqueued()
    show()
    Session.objects.all().delete()
    rows.enqueued()
    is_signed_out(page, banner)
    button(page, task.pk, "Cancel").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible(timeout=WITHIN)


def test_hidden_list_pauses_and_resumes(page: Page, show: Callable[..., None]) -> None:
    task, claim = rows.claimed()
    page.clock.install()
    page.add_init_script(
        """window.sources = [];
        window.EventSource = class extends EventSource {
          constructor(url) {
            super(url);
            sources.push(this);
          }
        };"""
    )
    show()
    shows(page, task.pk, "state", "Running")
    is_live(page)
    asked = parse_qs(urlsplit(page.evaluate("sources[0].url")).query)
    assert "progress_update" in asked["events"][0]
    assert "task_log" not in asked["events"][0]
    assert asked["results"] == ["0"]
    look(page, away=True)
    page.clock.run_for(30_000)
    assert page.evaluate("sources.map((source) => source.readyState)") == [2]
    lifecycle.complete({claim: None})
    other = rows.enqueued()
    page.clock.run_for(60_000)
    shows(page, task.pk, "state", "Running")
    assert page.evaluate("sources.length") == 1
    look(page)
    shows(page, task.pk, "state", "Completed")
    expect(page.locator('[data-part="new"]')).to_have_text("Show 1 new task", timeout=WITHIN)
    is_live(page)
    assert line(page, other.pk).count() == 0
    # It requests the state of its rows only, not of other tasks.
    assert "lastEventId=" not in page.evaluate("sources[1].url")
