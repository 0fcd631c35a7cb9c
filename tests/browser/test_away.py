"""Pages that are not visible for a while: kept or frozen by the browser, or in a hidden tab.

These tests need the full Chromium: its headless shell keeps no page in memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim
from tasks_app.tasks.progress import LogLine
from tests import rows
from tests.chromium import CHROMIUM
from tests.harness import Web

from .pages import look, part, shows
from .scripted import Serve, task
from .test_admin import log_in, said

pytestmark = pytest.mark.browser

#: Records what the page received, and whether it came back from the browser's memory.
RECORD = """
window.facts = [];
window.kept = false;
addEventListener("task-progress:event", ({ detail }) => facts.push(detail.eventType));
addEventListener("pageshow", ({ persisted }) => { kept = persisted; });
"""


@pytest.fixture(scope="module")
def program() -> str | None:
    return CHROMIUM


def log(claim: Claim, *messages: str) -> None:
    assert lifecycle.log({claim: [LogLine("info", message) for message in messages]}) == []


@contextmanager
def suspended(browser: Browser) -> Iterator[None]:
    """Stop the browser's processes, like a sleeping machine."""
    devtools = browser.new_browser_cdp_session()
    processes = devtools.send("SystemInfo.getProcessInfo")["processInfo"]
    try:
        for process in processes:
            os.kill(process["id"], signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            os.kill(process["id"], signal.SIGCONT)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["back", "suspended", "hidden"])
def test_page_that_was_away_misses_nothing(
    browser: Browser,
    page: Page,
    context: BrowserContext,
    start_web: Callable[..., Web],
    owner: User,
    how: str,
) -> None:
    """The task continues and ends in that time. The page shows that, and each log line once."""
    row, claim = rows.claimed(owner=owner)
    site = {"DJANGO_SETTINGS_MODULE": "tests.bars_site", "LOG_LEVEL": "DEBUG"}
    web = start_web(**site)
    log_in(context, web, owner)
    page.goto(f"{web.url}/bars/?form=card")
    page.evaluate(RECORD)
    log(claim, "one", "two")
    lifecycle.report({claim: said("half of it", 0.5)})
    shows(page, row, "Running", "0.5")
    lines = part(page, row, "log").locator("li")
    expect(lines).to_have_text(["one", "two"])

    def goes_on() -> None:
        log(claim, "three", "four")
        lifecycle.complete({claim: {"rows": 4}})

    match how:
        case "back":
            page.goto(f"{web.url}/static/mark.svg")
            web.says("The relay stopped: no open streams")
            goes_on()
            # It returns from memory unchanged, so there is no load event to wait for.
            page.go_back(wait_until="commit")
        case "suspended":
            with suspended(browser):
                # The connection does not survive the night.
                web.send(signal.SIGKILL)
                web.wait()
                goes_on()
                start_web(port=web.port, **site)
        case "hidden":
            look(page, away=True)
            web.says("The relay stopped: no open streams")
            goes_on()
            look(page)

    shows(page, row, "Completed", "1")
    expect(lines).to_have_text(["one", "two", "three", "four"])
    assert page.evaluate("facts") == ["task_log"] * 4 + ["task_completed"]
    assert page.evaluate("kept") is (how == "back")


def test_seventh_tab_loads(context: BrowserContext, serve: Serve) -> None:
    """Although six tabs were shown before, and a browser allows six connections to a host."""
    row = task()
    site = serve(row)
    for number in range(1, 7):
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        site.stream(number)
        look(page, away=True)
    seventh = context.new_page()
    # Before the half minute that users would consider a hang.
    seventh.goto(f"{site.url}/page/", timeout=15_000)
    site.stream(7).progress(row, 0.5)
    shows(seventh, row, "Running", "0.5")


def test_page_closes_its_stream_when_hidden_and_reopens_it(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    page.evaluate("addEventListener('pageshow', (e) => { document.title = `back ${e.persisted}` })")
    stream = site.stream()
    stream.progress(row, 0.5, "then")
    shows(page, row, "Running", "0.5")
    page.goto(f"{site.url}/elsewhere/")
    site.wait_for(lambda: stream.closed, "the stream to close on pagehide")
    row.progress, row.progress_text = 0.75, "now"
    # It returns from memory unchanged, so there is no load event to wait for.
    page.go_back(wait_until="commit")
    expect(page).to_have_title("back true")
    shows(page, row, "Running", "0.75", "now")
    assert len(site.streams) == 2
