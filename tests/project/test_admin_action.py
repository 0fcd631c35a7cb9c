"""From a selection in the admin to a file, with the processes that `make run` starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import browser, context, page, program  # noqa: F401  # fixtures
from tests.project.conftest import BERGEN, HEADER, OSLO, ROST
from tests.project.site import RunningSite, running

pytestmark = pytest.mark.browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    with running(tmp_path / "data") as site:
        yield site


@pytest.fixture
def operator(page: Page, site: RunningSite, tmp_path: Path) -> Page:  # noqa: F811
    """The demonstration account, with three imported airports."""
    name, password = site.printed("^Login: (.*) / (.*)$").groups()
    page.goto(site.url)
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="My tasks")).to_be_visible()
    file = tmp_path / "norway.csv"
    file.write_text("\n".join([HEADER, OSLO, BERGEN, ROST]))
    page.goto(f"{site.url}/airports/import/")
    page.get_by_label("My own CSV file").check()
    page.get_by_label("CSV file", exact=True).set_input_files(file)
    page.get_by_role("button", name="Import").click()
    expect(page.locator("task-progress")).to_have_attribute("status", "completed")
    return page


def test_selected_airports_are_exported_and_the_live_list_shows_it(
    operator: Page,
    site: RunningSite,
    context: BrowserContext,  # noqa: F811
) -> None:
    home = context.new_page()
    home.goto(site.url)
    expect(home.locator("task-progress")).to_have_count(1)

    operator.goto(f"{site.url}/admin/airports/airport/?country=NO")
    for name in ("Bergen", "Rost"):
        operator.get_by_role("row").filter(has_text=name).get_by_role("checkbox").check()
    operator.locator("select[name=action]").select_option("Export selected airports")
    operator.get_by_role("button", name=re.compile("Go|Run")).click()

    # The task's live page updates to the end without a reload.
    expect(operator).to_have_url(re.compile(r"/tasks/[0-9a-f-]{36}/\?next="))
    bar = operator.locator("task-progress")
    expect(bar).to_have_attribute("status", "completed")
    expect(bar).to_contain_text("100%")
    expect(operator.get_by_text("2 selected")).to_be_visible()
    with operator.expect_download() as download:
        operator.get_by_role("link", name="Download the CSV").click()
    rows = download.value.path().read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["ENBR", "ENRS"]

    # In another window, the list of own tasks shows it without a reload.
    expect(home.locator("task-progress")).to_have_count(2)
    newest = home.locator("task-progress").first
    expect(newest).to_contain_text("Export airports")
    expect(newest).to_have_attribute("status", "completed")

    operator.get_by_role("link", name="Back").click()
    expect(operator).to_have_url(re.compile(r"/admin/airports/airport/\?country=NO$"))
