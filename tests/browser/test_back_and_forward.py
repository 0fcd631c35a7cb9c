"""A page that is left and that the browser keeps, which Chromium does and its shell does not."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.chromium import CHROMIUM

from .pages import shows
from .scripted import Serve, task

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def program() -> str | None:
    return CHROMIUM


def test_a_page_that_goes_away_closes_and_one_that_returns_opens(page: Page, serve: Serve) -> None:
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
    # It returns from memory as it was, so there is no load event to wait for.
    page.go_back(wait_until="commit")
    expect(page).to_have_title("back true")
    shows(page, row, "Running", "0.75", "now")
    assert len(site.streams) == 2
