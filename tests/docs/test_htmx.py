"""The htmx recipe, built as described and run in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import BrowserContext, Page, Request, expect

from tasks_app.service import task_service
from tests.browser.conftest import browser, context, page, program  # noqa: F401  # fixtures
from tests.docs.pages import ROOT, snippets
from tests.harness import Process, Web, eventually
from tests.tasks import Add, Fail

pytestmark = pytest.mark.browser

RECIPE = ROOT / "docs" / "htmx.md"
SETTINGS = """
from project.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "django_htmx", "counts"]
ROOT_URLCONF = "recipe_urls"
"""
URLS = """
from django.urls import include, path

from project.urls import urlpatterns as site

urlpatterns = [path("counts/", include("counts.urls")), *site]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, str]:
    """Write the recipe's files, and return the environment of a site that uses them."""
    (tmp_path / "recipe_settings.py").write_text(SETTINGS)
    (tmp_path / "recipe_urls.py").write_text(URLS)
    for snippet in snippets(RECIPE):
        if snippet.file:
            path = tmp_path / snippet.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if "append" in snippet.options else "w") as file:
                file.write(snippet.text)
    (tmp_path / "counts" / "__init__.py").touch()
    return {"DJANGO_SETTINGS_MODULE": "recipe_settings", "PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.fixture
def site(
    recipe: dict[str, str],
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
) -> Web:
    start_worker(**recipe)
    return start_web(**recipe)


@pytest.fixture
def visitor(site: Web, cookie: str, context: BrowserContext, page: Page) -> Page:  # noqa: F811
    """The owner's browser."""
    context.add_cookies([{"name": "sessionid", "value": cookie, "url": site.url}])
    return page


def streams(page: Page) -> list[str]:  # noqa: F811
    """Return a list that collects the streams that the page opens."""
    asked: list[str] = []

    def record(request: Request) -> None:
        if "/stream/" in request.url:
            asked.append(request.url)

    page.on("request", record)
    return asked


def test_bars_from_htmx_are_live_and_share_one_stream(site: Web, visitor: Page) -> None:
    visitor.goto(f"{site.url}/counts/")
    expect(visitor.get_by_text("0 done")).to_be_visible()
    asked = streams(visitor)
    below = visitor.get_by_label("Add squares below")
    for number in (3, 4):
        below.fill(str(number))
        visitor.get_by_role("button", name="Start").click()
    bars = visitor.locator("#bars task-progress")
    expect(bars).to_have_count(2)
    for bar in bars.all():
        expect(bar).to_have_attribute("status", "completed")
        expect(bar).to_contain_text("100%")
    # The page reloaded one line at each end.
    expect(visitor.get_by_text("2 done")).to_be_visible()
    assert all("/tasks/stream/?task=" in url for url in asked)
    below.fill("many")
    visitor.get_by_role("button", name="Start").click()
    expect(visitor.get_by_role("alert").first).to_contain_text("valid integer")
    # The page loaded the stylesheet and the script once.
    expect(visitor.locator("link[href*=task-progress]")).to_have_count(1)


@pytest.mark.parametrize(
    ("task", "params", "end"),
    [(Add, {"a": 1}, "completed, 100%"), (Fail, {}, "failed, 25%")],
)
def test_htmx_stream_is_closed_after_the_end(
    site: Web, visitor: Page, owner: User, task: Any, params: dict[str, Any], end: str
) -> None:
    started = task_service.start_task(task, params, owner=owner)
    # Otherwise the extension would open another one after half a second.
    visitor.clock.install()
    visitor.add_init_script(
        "addEventListener('htmx:sseClose', ({detail}) => (window.ended = detail.type));"
        "addEventListener('htmx:sseError', () => (window.failed = true));"
    )
    asked = streams(visitor)
    visitor.goto(f"{site.url}/counts/watch/{started.task_id}/")
    expect(visitor.get_by_text(end)).to_be_visible()
    eventually(lambda: visitor.evaluate("window.ended") == "message", what="it closes the stream")
    visitor.clock.run_for(300_000)
    assert asked == [f"{site.url}/tasks/{started.task_id}/stream/"]
    assert visitor.evaluate("window.failed") is None


def test_without_sse_close_the_stream_is_reopened(site: Web, visitor: Page, owner: User) -> None:
    """This proves the recipe's warning: without it the page could be simpler."""
    started = task_service.start_task(Add, {"a": 1}, owner=owner)
    visitor.route(
        re.compile("/counts/watch/"),
        lambda route: route.fulfill(
            body=route.fetch().text().replace('sse-close="stream-end"', ""),
            content_type="text/html",
        ),
    )
    asked = streams(visitor)
    visitor.goto(f"{site.url}/counts/watch/{started.task_id}/")

    def opened() -> bool:
        visitor.evaluate("0")  # lets the browser report its requests
        return len(asked) > 2

    eventually(opened, what="it opens another stream")
