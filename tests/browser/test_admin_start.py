"""The start form and the overview of the admin in a real Chromium, with a real site."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from project.airports.tasks import FarthestReachable
from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.browser.test_admin import WITHIN, enforce_trusted_types, log_in, operator
from tests.harness import Process, Web, begins, ends, eventually
from tests.rows import saved, worker
from tests.tasks import Steps

__all__ = ["operator"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

OFFERS = reverse("admin:tasks_app_task_start")
FORM = reverse("admin:tasks_app_task_start_form", args=[FarthestReachable.name()])
OVERVIEW = reverse("admin:tasks_app_task_overview")
WORKERS = reverse("admin:tasks_app_worker_changelist")


def number(page: Page, status: str) -> Locator:
    return page.locator(f'.overview-numbers [data-status="{status}"] dt + dd')


def state(page: Page) -> Locator:
    return page.locator('[data-overview-live] [data-part="state"]')


def test_form_refuses_a_bad_value_at_its_field_and_then_starts(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    web = start_web()
    log_in(context, web, operator)
    page.goto(f"{web.url}{OFFERS}")
    page.get_by_role("searchbox", name="Search").fill("reachable")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Farthest reachable airports").click()

    range_km = page.get_by_label("Range km")
    expect(range_km).to_have_value("500")
    range_km.fill("5")
    page.get_by_label("Country").fill("NO")
    page.get_by_role("button", name="Start").click()

    expect(range_km).to_have_attribute("aria-invalid", "true")
    expect(range_km).to_have_accessible_description(
        "The maximum length of a hop. Must be at least 10."
    )
    expect(range_km).to_be_focused()
    expect(range_km).to_have_value("5")
    expect(page.get_by_label("Country")).to_have_value("NO")
    expect(page.get_by_role("alert")).to_contain_text("Not started.")
    assert not Task.objects.exists()

    range_km.fill("50")
    page.keyboard.press("Enter")
    expect(page.locator(".messagelist")).to_have_text("Farthest reachable airports was started.")
    task = Task.objects.get()
    assert page.url == web.url + reverse("admin:tasks_app_task_change", args=[task.pk])
    assert (task.params["range_km"], task.params["country"]) == (50, "NO")


def test_overview_updates_without_a_reload(
    page: Page,
    context: BrowserContext,
    operator: User,
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
    reins: Path,
) -> None:
    web = start_web()
    log_in(context, web, operator)
    enforce_trusted_types(page, f"{web.url}{OVERVIEW}")
    page.goto(f"{web.url}{OVERVIEW}")
    expect(state(page)).to_have_text("Live", timeout=WITHIN)
    expect(page.get_by_role("link", name="Refresh")).to_be_hidden()
    expect(page.get_by_text("No workers yet")).to_be_visible()
    page.evaluate("window.same = true")
    # Opened sections and the focus stay as they are.
    table = page.locator("#chart-hour ~ details")
    table.locator("summary").click()
    table.locator("summary").focus()

    task_id = task_service.start_task(Steps, {"reins": str(reins)}).task_id
    expect(number(page, "pending")).to_have_text("1", timeout=WITHIN)
    process = start_worker()
    begins(task_id)
    expect(number(page, "running")).to_have_text("1", timeout=WITHIN)
    expect(page.get_by_role("row", name=f"{process.pid}")).to_contain_text("Alive")
    # The worker's own page updates too.
    worker_page = context.new_page()
    one = Worker.objects.get(pid=process.pid)
    worker_page.goto(f"{web.url}{reverse('admin:tasks_app_worker_change', args=[one.pk])}")
    expect(worker_page.locator(".field-work .readonly")).to_have_text(re.compile("^1 of"))
    expect(worker_page.locator(".field-stopped .readonly")).to_have_text("-")
    reins.write_text("10")
    ends(task_id)
    expect(number(page, "completed")).to_have_text("1", timeout=WITHIN)
    expect(number(page, "running")).to_have_text("0", timeout=WITHIN)
    expect(worker_page.locator(".field-work .readonly")).to_have_text(
        re.compile("^0 of"), timeout=WITHIN
    )
    assert page.evaluate("window.same")
    expect(table).to_have_attribute("open", "")
    expect(table.locator("summary")).to_be_focused()
    expect(page.locator("[data-overview]")).to_have_attribute("aria-busy", "false")


def test_overview_pauses_and_polls_without_a_stream(
    page: Page, context: BrowserContext, operator: User, start_web: Callable[..., Web]
) -> None:
    web = start_web()
    log_in(context, web, operator)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.install()
    page.goto(f"{web.url}{OVERVIEW}")
    expect(state(page)).to_have_text("Live", timeout=WITHIN)
    # Another stream of the same page: whatever it gets, the overview gets too.
    page.evaluate(
        """url => new Promise((opened) => {
          const source = new EventSource(url);
          source.addEventListener("open", opened);
          source.addEventListener("task_queued", () => { window.received = true; });
        })""",
        f"{web.url}/tasks/stream/?all=1",
    )
    pause = page.get_by_role("button", name="Pause updates")
    pause.click()
    expect(state(page)).to_have_text("Paused")
    # The button's name stays the same, because the pressed state says the rest.
    expect(pause).to_have_attribute("aria-pressed", "true")
    asked.clear()
    task_service.start_task(Steps, {"reins": "/nowhere"})
    eventually(lambda: page.evaluate("() => window.received === true"), what="the stream sends it")
    page.clock.run_for(10_000)
    assert asked == []
    expect(number(page, "pending")).to_have_text("0")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "false")
    expect(number(page, "pending")).to_have_text("1", timeout=WITHIN)

    page.route("**/tasks/stream/**", lambda route: route.abort())
    page.reload()
    banner = page.locator('[data-overview-live] [data-part="banner"]')
    expect(banner).to_have_text(
        "Live updates are interrupted. Checking every few seconds…", timeout=WITHIN
    )
    task_service.start_task(Steps, {"reins": "/nowhere"})
    expect(number(page, "pending")).to_have_text("2", timeout=WITHIN)
    page.unroute("**/tasks/stream/**")
    expect(banner).to_be_hidden(timeout=WITHIN)
    expect(state(page)).to_have_text("Live")

    context.clear_cookies()
    task_service.start_task(Steps, {"reins": "/nowhere"})
    expect(banner).to_contain_text("you may have been signed out", timeout=WITHIN)
    expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()


def test_workers_fit_on_a_screen(
    browser: Browser, operator: User, start_web: Callable[..., Web]
) -> None:
    web = start_web()
    long_ago = timezone.now() - timedelta(hours=3, minutes=3)
    worker(hostname="a-host-with-a-name", queues=["imports", "mails"], heartbeat_at=long_ago)
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        log_in(context, web, operator)
        page = context.new_page()
        page.goto(f"{web.url}{WORKERS}")
        held = "element => element.scrollWidth <= element.clientWidth"
        assert page.locator("#changelist .results").evaluate(held)
        expect(page.locator(".field-state")).to_have_text("Heartbeat lost")
        # It updates.
        worker(hostname="another-host")
        state = page.locator(".field-state")
        expect(state).to_have_text(["Alive", "Heartbeat lost"], timeout=WITHIN)
        expect(page.get_by_role("link", name="Heartbeat lost")).to_be_visible()


def test_pages_fit_on_a_phone(
    browser: Browser, operator: User, start_web: Callable[..., Web]
) -> None:
    web = start_web()
    worker(hostname="a-host-with-a-very-long-name-" + "x" * 60, queues=["q" * 90])
    for status in Status:
        saved(status, queue="queue-" + "y" * 90)
    with browser.new_context(viewport={"width": 390, "height": 800}) as context:
        log_in(context, web, operator)
        page = context.new_page()
        for url in (OVERVIEW, OFFERS, FORM):
            page.goto(f"{web.url}{url}")
            assert page.evaluate("document.documentElement.scrollWidth") == 390, url
