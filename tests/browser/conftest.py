"""A real Chromium for the tests marked `browser`."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from pytest_django import Settings

from tasks_app.models import Task
from tests.chromium import CHROMIUM, SHELL
from tests.harness import PATIENCE

from .scripted import Serve, Site

# Playwright's five seconds are too short on a slow machine.
expect.set_options(timeout=1_000 * PATIENCE)

ARGUMENTS = [
    "--no-sandbox",  # root in a container cannot have the sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def program() -> str | None:
    return SHELL or CHROMIUM


@pytest.fixture(scope="module")
def browser(program: str | None) -> Iterator[Browser]:
    """A Chromium for one module.

    Not for the session: while Playwright is active, its event loop counts as running in this
    thread, so no test of another module could run its own.
    """
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # For the same reason Django assumes that the ORM is called from a coroutine.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = playwright.chromium.launch(
            executable_path=program,
            args=ARGUMENTS,
            # Playwright disables it, but visitors have it enabled.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1_000 * PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page on which any script error and any violation of the content policy fails the test."""
    faults: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            faults.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    yield page
    assert faults == []


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    # Tests advance their page's clock by half a minute. A silent stream must not look broken then.
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 15
    sites: list[Site] = []

    def start(*rows: Task) -> Site:
        sites.append(Site(*rows))
        return sites[-1]

    yield start
    for site in sites:
        site.end()
