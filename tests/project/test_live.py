"""A visitor's upload, with the processes that `make run` starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import browser, context, page, program  # noqa: F401  # fixtures
from tests.project.conftest import HEADER, OSLO
from tests.project.site import RunningSite, running

pytestmark = pytest.mark.browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    with running(tmp_path / "data") as site:
        yield site


@pytest.fixture
def visitor(page: Page, site: RunningSite) -> Page:  # noqa: F811
    """The demonstration account, logged in with the credentials that `make run` printed."""
    name, password = site.printed("^Login: (.*) / (.*)$").groups()
    page.goto(site.url)
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="My tasks")).to_be_visible()
    return page


def test_rejected_rows_appear_and_download_without_a_reload(
    visitor: Page, site: RunningSite, tmp_path: Path
) -> None:
    file = tmp_path / "norway.csv"
    file.write_text("\n".join([HEADER, OSLO, OSLO.replace("60.1939", "91").replace("GM", "XX")]))
    visitor.goto(f"{site.url}/airports/import/")
    upload = visitor.get_by_label("CSV file", exact=True)
    expect(upload).to_be_hidden()
    visitor.get_by_label("My own CSV file").check()
    upload.set_input_files(file)
    visitor.get_by_role("button", name="Import").click()
    expect(visitor.locator("task-progress")).to_have_attribute("status", "completed")
    outcome = visitor.locator("#task-outcome")
    expect(outcome).to_contain_text("lat is '91', must be a number from -90 to 90")
    expect(visitor.locator("#task-history")).to_contain_text("Completed")
    with visitor.expect_download() as download:
        outcome.get_by_role("link", name="Download the report").click()
    report = download.value.path().read_text().splitlines()
    assert report[1].startswith("3,\"lat is '91'")
