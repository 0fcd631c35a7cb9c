"""The admin's list and pages in a real Chromium, with a real site and a real worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from tasks_app.models import Task
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Failure
from tasks_app.tasks.progress import LogLine
from tests import rows
from tests.harness import Process, Web, begins, ends, eventually
from tests.tasks import Steps

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WITHIN = 30_000
LIST = reverse("admin:tasks_app_task_changelist")
#: Text that a page would execute if it were not escaped.
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'>&amp;"


@pytest.fixture
def operator(transactional_db: None) -> User:
    return User.objects.create_superuser("grace", password="grace")


def enforce_trusted_types(page: Page, url: str) -> None:
    """Serve a page of the admin with a policy that names our Trusted Types policies."""

    def served(route: Route) -> None:
        if route.request.resource_type != "document":
            route.fallback()
            return
        response = route.fetch()
        policy = "require-trusted-types-for 'script'; trusted-types tasks_app tasks_app-admin"
        headers = response.headers | {"content-security-policy": policy}
        route.fulfill(response=response, headers=headers)

    page.route(url, served)


def log_in(context: BrowserContext, web: Web, user: User) -> None:
    client = Client()
    client.force_login(user)
    cookie = {"name": "sessionid", "value": client.cookies["sessionid"].value, "url": web.url}
    context.add_cookies([cookie])  # type: ignore[list-item]


def line(page: Page, task_id: object) -> Locator:
    return page.locator(f'tr:has(template[data-task="{task_id}"])')


def shows(page: Page, task_id: object, part: str, text: str) -> None:
    cell = line(page, task_id).locator(f'[data-part="{part}"]')
    expect(cell).to_have_text(text, timeout=WITHIN)


def said(text: str, value: float) -> TaskProgressUpdate:
    return TaskProgressUpdate(text=text, value=value)


def is_live(page: Page) -> None:
    expect(page.locator('[data-part="live-state"]')).to_have_text("Live", timeout=WITHIN)


def test_operator_and_owner_see_a_task_appear_move_and_be_cancelled(
    browser: Browser,
    page: Page,
    context: BrowserContext,
    operator: User,
    owner: User,
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
    reins: Path,
) -> None:
    web = start_web()
    log_in(context, web, operator)
    page.goto(f"{web.url}{LIST}")
    is_live(page)
    task_id = task_service.start_task(Steps, {"reins": str(reins)}, owner=owner).task_id
    new_tasks = page.locator('[data-part="new"]')
    expect(new_tasks).to_have_text("Show 1 new task", timeout=WITHIN)
    expect(page.locator('[data-part="announcer"]')).to_have_text("Show 1 new task")
    new_tasks.click()
    is_live(page)
    shows(page, task_id, "state", "Pending")
    page.evaluate("window.same = true")

    theirs = browser.new_context()
    try:
        log_in(theirs, web, owner)
        own = theirs.new_page()
        own.goto(f"{web.url}/tasks/{task_id}/")
        state = own.locator('task-progress [data-part="state"]').first
        expect(state).to_have_text("Waiting to start", timeout=WITHIN)

        worker = start_worker()
        shows(page, task_id, "state", "Running")
        expect(state).to_have_text("Running", timeout=WITHIN)
        begins(task_id)
        reins.write_text("5")
        expect(line(page, task_id).locator('[data-part="percent"]')).to_have_text(
            "50%", timeout=WITHIN
        )
        shows(page, task_id, "attempt", "1 of 1")
        expect(line(page, task_id).locator('[data-part="worker"]')).to_contain_text(
            f":{worker.pid}", timeout=WITHIN
        )

        line(page, task_id).get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Yes, cancel").click()
        shows(page, task_id, "state", "Cancelled")
        expect(state).to_have_text("Cancelled", timeout=WITHIN)
    finally:
        theirs.close()
    # The row updated without a reload.
    assert page.evaluate("window.same")
    expect(line(page, task_id).get_by_role("button", name="Retry")).to_be_visible()
    expect(line(page, task_id).get_by_role("button", name="Cancel")).to_be_hidden()
    assert Task.objects.get(pk=task_id).status == Status.CANCELLED


def test_pause(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    task, claim = rows.claimed()
    web = start_web()
    log_in(context, web, operator)
    page.goto(f"{web.url}{LIST}")
    is_live(page)
    shows(page, task.pk, "state", "Running")
    pause = page.get_by_role("button", name="Pause updates")
    expect(pause).to_have_attribute("aria-pressed", "false")
    pause.focus()
    page.keyboard.press("Space")
    expect(pause).to_have_attribute("aria-pressed", "true")
    expect(page.locator('[data-part="live-state"]')).to_have_text("Paused")

    # Another stream of the same page: whatever it gets, the list gets too.
    page.evaluate(
        """url => new Promise((opened) => {
          const source = new EventSource(url);
          source.addEventListener("task_status", opened);
          source.addEventListener("task_completed", () => { window.received = true; });
        })""",
        f"{web.url}/tasks/stream/?all=1",
    )
    lifecycle.complete({claim: None})
    # Not wait_for_function: it evaluates text repeatedly, which the page's policy forbids.
    eventually(lambda: page.evaluate("() => window.received === true"), what="the stream sends it")
    shows(page, task.pk, "state", "Running")
    page.keyboard.press("Space")
    expect(pause).to_have_attribute("aria-pressed", "false")
    shows(page, task.pk, "state", "Completed")


def test_lost_stream_is_reported_and_restored(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    task, claim = rows.claimed()
    web = start_web()
    log_in(context, web, operator)
    page.goto(f"{web.url}{LIST}")
    is_live(page)
    banner = page.locator('[data-part="banner"]')
    expect(banner).to_be_hidden()
    web.end()
    expect(banner).to_be_visible(timeout=WITHIN)
    expect(banner).to_contain_text("Connection lost", timeout=WITHIN)
    lifecycle.complete({claim: None})
    start_web(web.port)
    expect(banner).to_be_hidden(timeout=WITHIN)
    is_live(page)
    shows(page, task.pk, "state", "Completed")


def test_polling_replaces_a_missing_stream(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    task, claim = rows.claimed()
    web = start_web()
    log_in(context, web, operator)
    page.route("**/tasks/stream/**", lambda route: route.fulfill(status=501, body="no"))
    page.goto(f"{web.url}{LIST}")
    banner = page.locator('[data-part="banner"]')
    expect(banner).to_contain_text("Checking every few seconds", timeout=WITHIN)
    lifecycle.complete({claim: None})
    shows(page, task.pk, "state", "Completed")
    other = rows.enqueued()
    expect(page.locator('[data-part="new"]')).to_have_text("Show 1 new task", timeout=WITHIN)
    # A deleted task's row does not vanish under the cursor.
    task_service.remove_completed_task(task.pk)
    shows(page, task.pk, "state", "Deleted")
    assert line(page, other.pk).count() == 0


def test_task_text_is_never_inserted_as_html(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    task, claim = rows.claimed(name=EVIL[:200], queue=EVIL[:100], params={EVIL: EVIL})
    lifecycle.report({claim: said(EVIL, 0.5)})
    web = start_web()
    log_in(context, web, operator)
    page.goto(f"{web.url}{LIST}")
    is_live(page)
    expect(line(page, task.pk).locator('[data-part="text"]')).to_have_text(EVIL)
    lifecycle.report({claim: said(f"live {EVIL}", 0.6)})
    shows(page, task.pk, "text", f"live {EVIL}")

    detail = context.new_page()
    faults: list[str] = []
    detail.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    detail.on("pageerror", lambda error: faults.append(str(error)))
    detail.goto(f"{web.url}{reverse('admin:tasks_app_task_change', args=[task.pk])}")
    expect(detail.locator('task-progress [data-part="text"]')).to_have_text(f"live {EVIL}")
    lifecycle.log({claim: [LogLine("info", EVIL)]})
    expect(detail.locator(".task-log li span")).to_have_text(EVIL, timeout=WITHIN)
    lifecycle.fail({claim: Failure(EVIL, EVIL, EVIL)})
    shows(page, task.pk, "error", f"{EVIL}: {EVIL}")
    expect(detail.locator(".task-whole-error")).to_have_text(f"{EVIL}: {EVIL}", timeout=WITHIN)
    expect(detail.locator("#task-traceback")).to_have_text(EVIL)
    assert detail.locator("img[src=x]").count() == page.locator("img[src=x]").count() == 0
    assert faults == []


def test_page_of_a_task_updates(
    page: Page,
    context: BrowserContext,
    operator: User,
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
    reins: Path,
) -> None:
    web = start_web()
    log_in(context, web, operator)
    task_id = task_service.start_task(Steps, {"reins": str(reins)}).task_id
    page.goto(f"{web.url}{reverse('admin:tasks_app_task_change', args=[task_id])}")
    timeline = page.locator(".task-timeline li")
    expect(timeline).to_have_count(1)
    start_worker()
    expect(timeline).to_have_count(2, timeout=WITHIN)
    begins(task_id)
    page.get_by_role("button", name="Cancel", exact=True).press("Enter")
    expect(page.get_by_role("form", name="Cancel this task?")).to_be_focused()
    page.get_by_role("button", name="Yes, cancel").press("Enter")
    expect(page.locator(".messagelist")).to_contain_text("Stopping…")
    # The keyboard focus stays at the buttons, and a screen reader reads the result.
    acts = page.get_by_role("group", name="Actions")
    expect(acts).to_be_focused()
    expect(acts).to_have_accessible_description("Steps: Stopping…")
    expect(page.locator(".task-facts .task-status")).to_have_text("Cancelled", timeout=WITHIN)
    expect(page.locator(".task-timeline")).to_contain_text("by grace")
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator(".task-related")).to_contain_text(f"Retried from {task_id}")
    assert ends(task_id).status == Status.CANCELLED


def test_traceback_is_copied(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    task = rows.ended(Status.FAILED)
    web = start_web()
    log_in(context, web, operator)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=web.url)
    page.clock.install()
    page.goto(f"{web.url}{reverse('admin:tasks_app_task_change', args=[task.pk])}")
    # It shows "Copied" until the test advances the clock.
    page.clock.pause_at(page.evaluate("Date.now() / 1000 + 60"))
    expect(page.locator("#task-traceback")).to_be_hidden()
    page.get_by_text("Traceback", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    said = page.locator('[data-part="said"]')
    expect(said).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Traceback: it broke"
    # It shows it for some seconds.
    page.clock.run_for(3_000)
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()
    expect(said).to_have_text("")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web], width: int
) -> None:
    long = "a_name_without_any_place_to_break_it" * 4
    task, claim = rows.claimed(name=long, queue=long[:100], params={long: long})
    lifecycle.report({claim: said(long * 4, 0.5)})
    lifecycle.fail({claim: Failure("ValueError", long * 9, long * 9)})
    web = start_web()
    log_in(context, web, operator)
    page.set_viewport_size({"width": width, "height": 800})
    for url in (
        LIST,
        reverse("admin:tasks_app_task_change", args=[task.pk]),
        reverse("admin:tasks_app_task_delete", args=[task.pk]),
    ):
        page.goto(f"{web.url}{url}")
        eventually(
            lambda: page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            ),
            what=f"{url} fits into {width}",
        )
        # The list's menus fit too.
        assert page.evaluate(
            """() => [...document.querySelectorAll(".task-filter")].map((filter) => {
              filter.open = true;
              const { left, right } = filter.querySelector("ul").getBoundingClientRect();
              filter.open = false;
              return left >= 0 && right <= innerWidth;
            }).every(Boolean)"""
        )
