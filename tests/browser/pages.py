"""What a visitor sees of a bar."""

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from tasks_app.models import Task

from .scripted import Site

#: A script for a page that is to wait for its stream, however late a slow machine is with it.
PATIENT = """
const soon = setTimeout;
window.setTimeout = (act, delay, ...rest) => soon(act, delay === 5_000 ? 600_000 : delay, ...rest);
"""


def bar(page: Page, row: Task) -> Locator:
    return page.locator(f'task-progress[task-id="{row.pk}"]')


def part(page: Page, row: Task, name: str) -> Locator:
    return bar(page, row).locator(f'[data-part="{name}"]')


def shows(page: Page, row: Task, state: str, value: str | None = None, text: str = "") -> None:
    expect(part(page, row, "state")).to_have_text(state)
    if value is not None:
        expect(part(page, row, "bar")).to_have_attribute("value", value)
    if text:
        expect(part(page, row, "text")).to_have_text(text)


def pass_time(page: Page, site: Site, until: Callable[[], bool], most: int = 600) -> int:
    """Let the page's clock run until the site sees something; return the seconds it took."""
    for second in range(most):
        with site.changed:
            if site.changed.wait_for(until, 0.02):
                return second
        page.clock.run_for(1_000)
    raise AssertionError(f"{most} seconds passed in vain")


def look(page: Page, *, away: bool = False) -> None:
    """Bring the page's tab to the front, or another one: a browser without a screen hides none."""
    page.evaluate(
        """away => {
          Object.defineProperty(document, "hidden", { value: away, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )
