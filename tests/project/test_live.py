"""A visitor, a real Chromium and all of the site's processes."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import browser, context, page  # noqa: F401  # fixtures
from tests.project.conftest import HEADER, OSLO
from tests.project.site import RunningSite, running

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    with running(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def visitor(page: Page, site: RunningSite) -> Page:  # noqa: F811
    """The demonstration account, logged in as `make run` told."""
    name, password = site.printed("^Login: (.*) / (.*)$").groups()
    page.goto(site.url)
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="My tasks")).to_be_visible()
    return page


def values_until_it_ends(task: Locator) -> list[float]:
    """Return the different values a bar shows, in their order."""
    seen: list[float] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = task.get_attribute("status")
        value = task.locator("progress").get_attribute("value")
        if value is not None and float(value) not in seen:
            seen.append(float(value))
        if status not in ("pending", "running"):
            return seen
        task.page.wait_for_timeout(20)
    raise AssertionError(f"the task did not end; its bar showed {seen}")


def import_airports(visitor: Page, site: RunningSite) -> Locator:
    visitor.goto(f"{site.url}/airports/import/")
    visitor.get_by_role("button", name="Import").click()
    return visitor.locator("task-progress")


def test_the_bar_of_the_import_moves_without_a_reload(visitor: Page, site: RunningSite) -> None:
    task = import_airports(visitor, site)
    expect(task).to_be_visible()
    visitor.evaluate("window.stillTheSamePage = true")
    values = values_until_it_ends(task)
    expect(task).to_have_attribute("status", "completed")
    assert len(values) >= 5
    assert values == sorted(values)
    assert values[-1] == 1.0
    expect(visitor.locator("#task-outcome")).to_contain_text(re.compile(r"Rows read\s*28,\d{3}"))
    expect(visitor.locator("#task-history")).to_contain_text("Completed")
    assert visitor.evaluate("window.stillTheSamePage")
    visitor.goto(f"{site.url}/airports/?q=LSZH")
    expect(visitor.get_by_text("Zurich Airport")).to_be_visible()


def test_rejected_rows_are_reported_for_download(
    visitor: Page, site: RunningSite, tmp_path: Path
) -> None:
    file = tmp_path / "norway.csv"
    file.write_text("\n".join([HEADER, OSLO, OSLO.replace("60.1939", "91").replace("GM", "XX")]))
    visitor.goto(f"{site.url}/airports/import/")
    visitor.get_by_label("A CSV file of my own").check()
    visitor.get_by_label("CSV file", exact=True).set_input_files(file)
    visitor.get_by_role("button", name="Import").click()
    outcome = visitor.locator("#task-outcome")
    expect(outcome).to_contain_text("lat is '91', must be a number from -90 to 90")
    with visitor.expect_download() as download:
        outcome.get_by_role("link", name="Download the report").click()
    assert download.value.path().read_text().splitlines()[1].startswith("3,\"lat is '91'")


def test_a_cancel_shows_in_every_page_that_watches(visitor: Page, site: RunningSite) -> None:
    import_airports(visitor, site)
    expect(visitor.locator("task-progress")).to_have_attribute(
        "status", "completed", timeout=60_000
    )
    visitor.goto(f"{site.url}/airports/reach/")
    visitor.get_by_role("button", name="Compute").click()
    task = visitor.locator("task-progress")
    expect(task).to_have_attribute("status", "running")
    second = visitor.context.new_page()
    second.goto(site.url)
    watched = second.locator("task-progress").first
    expect(watched).to_have_attribute("status", "running")
    task.get_by_role("button", name="Cancel").click()
    for bar in (task, watched):
        expect(bar).to_have_attribute("status", "cancelled")
        expect(bar).to_contain_text("Cancelled")
    expect(visitor.locator("#task-outcome")).to_contain_text("was cancelled and left no result")
