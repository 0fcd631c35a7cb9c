"""Helpers that check what a visitor sees of a bar."""

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from tasks_app.models import Task

from .scripted import Site

#: A script that makes a page wait for its stream, however late it is on a slow machine.
PATIENT = """
const soon = setTimeout;
window.setTimeout = (act, delay, ...rest) => soon(act, delay === 5_000 ? 600_000 : delay, ...rest);
"""


def bar(page: Page, row: Task) -> Locator:
    return page.locator(f'task-progress[task-id="{row.pk}"]')


def part(page: Page, row: Task, name: str) -> Locator:
    return bar(page, row).locator(f'[data-part="{name}"]')


def runs(page: Page) -> None:
    """Wait until the page's script runs. A page may be loaded before the script's imports are."""
    page.evaluate("customElements.whenDefined('task-progress').then(() => true)")


def shows(page: Page, row: Task, state: str, value: str | None = None, text: str = "") -> None:
    expect(part(page, row, "state")).to_have_text(state)
    if value is not None:
        expect(part(page, row, "bar")).to_have_attribute("value", value)
    if text:
        expect(part(page, row, "text")).to_have_text(text)


def pass_time(page: Page, site: Site, until: Callable[[], bool], most: int = 600) -> int:
    """Advance the page's clock until a condition of the site holds, and return the seconds."""
    for second in range(most):
        with site.changed:
            if site.changed.wait_for(until, 0.02):
                return second
        page.clock.run_for(1_000)
    raise AssertionError(f"{most} seconds passed in vain")


def look(page: Page, *, away: bool = False) -> None:
    """Simulate that the page's tab is shown or hidden, which headless browsers never do."""
    page.evaluate(
        """away => {
          Object.defineProperty(document, "hidden", { value: away, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )
