"""The site as a visitor sees it, with the processes that `make run` starts."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.harness import ROOT, eventually, free_port

pytestmark = pytest.mark.browser

#: Keeps every value of the bars, so that a test misses none.
RECORD = """
window.values = [];
new MutationObserver((changes) => {
  for (const { target } of changes)
    if (target.matches("task-progress progress")) window.values.push(target.getAttribute("value"));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["value"] });
"""


@dataclass
class Site:
    """The demonstration site, run as its README says."""

    url: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return self.log.read_text()

    def query(self, sql: str) -> list[tuple[object, ...]]:
        # A new connection each time, so that nothing is held while processes die.
        connection = sqlite3.connect(f"file:{self.data / 'db.sqlite3'}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def child(self, what: str) -> int:
        """Return the process id of the web server or of the worker."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            if what in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
                return int(pid)
        raise AssertionError(f"no {what} among {children}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    port, log = free_port(), folder / "log"
    environment = {
        **os.environ,
        "PORT": str(port),
        "DATA_DIR": str(folder / "data"),
        "TASK_LEASE_SECONDS": "3",
        "TASK_HEARTBEAT_SECONDS": "1",
    }
    environment.pop("DATABASE_URL", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "project.run"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    site = Site(f"http://127.0.0.1:{port}", folder / "data", log, process)
    try:
        eventually(lambda: "Login:" in site.output, what="Login: in its output")
        yield site
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code == 0, site.output


@pytest.fixture
def visitor(site: Site, page: Page) -> Page:
    """A page of a user who logged in with the printed credentials."""
    printed = re.search(r"^Login: (\S+) / (\S+)$", site.output, re.MULTILINE)
    assert printed
    assert f"Site: {site.url}/" in site.output
    page.add_init_script(RECORD)
    page.goto(site.url)
    page.get_by_label("Username").fill(printed[1])
    page.get_by_label("Password").fill(printed[2])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="My tasks")).to_be_visible()
    return page


@pytest.fixture
def compute(site: Site, visitor: Page) -> Callable[[], UUID]:
    """Start the long computation from its page, and wait until its bar moves."""

    def start() -> UUID:
        # All airports: a killed import leaves only some, and those are computed too soon.
        if site.query("SELECT count(*) FROM airports_airport") < [(28_000,)]:
            import_airports(site, visitor)
        visitor.goto(f"{site.url}/airports/reach/")
        visitor.locator("main form button.primary").click()
        expect(visitor.locator("task-progress")).to_have_attribute("status", "running")
        # The server may have rendered the page with it. Once the bar moves, the script runs too.
        visitor.wait_for_function("() => window.values.length > 0", timeout=30_000)
        return UUID(visitor.url.rstrip("/").rpartition("/")[2])

    return start


def import_airports(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/airports/import/")
    page.locator("main form button.primary").click()
    expect(page.locator("task-progress")).to_have_attribute("status", "completed", timeout=60_000)


def test_import_bar_moves_to_its_end_without_a_reload(site: Site, visitor: Page) -> None:
    loads: list[str] = []
    import_page = f"{site.url}/airports/import/"
    visitor.goto(import_page)
    visitor.on("load", lambda page: loads.append(page.url))
    visitor.locator("main form button.primary").click()
    bar = visitor.locator("task-progress")
    expect(bar).to_have_attribute("status", "completed", timeout=60_000)
    values = [float(value) for value in visitor.evaluate("window.values") if value is not None]
    assert len(set(values)) >= 5
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert len(loads) == 1
    expect(bar).to_contain_text("Completed")
    expect(bar).to_contain_text("100%")
    expect(visitor.locator("#task-outcome")).to_contain_text(re.compile(r"2[89],\d{3}"))
    [[airports]] = site.query("SELECT count(*) FROM airports_airport")
    assert isinstance(airports, int)
    assert airports >= 28_000


def test_cancel_shows_in_this_page_and_in_another(
    site: Site, visitor: Page, context: BrowserContext, compute: Callable[[], UUID]
) -> None:
    compute()
    other = context.new_page()
    other.goto(visitor.url)
    expect(other.locator("task-progress")).to_have_attribute("status", "running")
    visitor.get_by_role("button", name="Cancel").click()
    visitor.get_by_role("button", name="Cancel this task?").click()
    for page in (visitor, other):
        expect(page.locator("task-progress")).to_have_attribute("status", "cancelled")
        expect(page.locator("task-progress")).to_contain_text("Cancelled")


def test_page_continues_after_the_web_server_was_killed(
    site: Site, visitor: Page, compute: Callable[[], UUID]
) -> None:
    task_id = compute()
    web = site.child("uvicorn")
    os.kill(web, signal.SIGKILL)
    eventually(lambda: "The web server ended by SIGKILL" in site.output)
    before = len(visitor.evaluate("window.values"))
    visitor.wait_for_function(
        "(before) => window.values.length > before + 3", arg=before, timeout=40_000
    )
    expect(visitor.locator("task-progress")).to_have_attribute("status", "running")
    assert site.child("uvicorn") != web
    visitor.get_by_role("button", name="Cancel").click()
    visitor.get_by_role("button", name="Cancel this task?").click()
    expect(visitor.locator("task-progress")).to_have_attribute("status", "cancelled")
    events = site.query(
        f"SELECT event_type FROM tasks_app_taskevent WHERE task_id = '{task_id.hex}' ORDER BY id"
    )
    assert events[-1] == ("task_cancelled",)


# Two leases of three seconds, and the time to start a worker again.
RESCUED = 60_000


def test_task_whose_worker_was_killed_fails_on_the_page(site: Site, visitor: Page) -> None:
    visitor.goto(f"{site.url}/airports/import/")
    visitor.locator("main form button.primary").click()
    visitor.wait_for_function("() => window.values.some((value) => value > 0.05)")
    os.kill(site.child("run_tasks"), signal.SIGKILL)
    bar = visitor.locator("task-progress")
    expect(bar).to_have_attribute("status", "failed", timeout=RESCUED)
    # Only staff see which worker it was.
    expect(bar).to_contain_text("The task failed.")
    expect(bar).not_to_contain_text("WorkerLost")


def test_task_whose_worker_was_killed_is_retried_if_allowed(
    site: Site, visitor: Page, compute: Callable[[], UUID]
) -> None:
    compute()
    os.kill(site.child("run_tasks"), signal.SIGKILL)
    bar = visitor.locator("task-progress")
    expect(bar).to_contain_text("attempt 2 of 3", timeout=RESCUED)
    expect(bar).to_have_attribute("status", "running", timeout=RESCUED)
    visitor.get_by_role("button", name="Cancel").click()
    visitor.get_by_role("button", name="Cancel this task?").click()
    expect(bar).to_have_attribute("status", "cancelled")
