"""The cancel button, with and without a script."""

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from .pages import bar, part, shows
from .scripted import Request, Serve, task

pytestmark = pytest.mark.browser


def button(page: Page) -> Locator:
    return page.get_by_role("button", name="Cancel", exact=True)


def press(page: Page) -> None:
    """Press Cancel, and confirm."""
    button(page).click()
    page.get_by_role("button", name="Cancel this task?").click()


def test_cancel_asks_for_confirmation(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream()
    button(page).focus()
    # Click twice, as users do who double-click everything.
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    sure = page.get_by_role("button", name="Cancel this task?")
    expect(sure).to_be_focused()
    expect(part(page, row, "announcer")).to_contain_text("Cancel this task?")
    # Without confirmation nothing is cancelled.
    page.clock.run_for(10_000)
    expect(button(page)).to_be_focused()
    shows(page, row, "Running")
    assert site.asked("cancel") == []


def test_cancel(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    held = True

    def cancel(_request: Request) -> tuple[int, object]:
        site.wait_for(lambda: not held, "the test to look")
        row.cancel_requested_at = row.started_at
        return 200, row.info().model_dump(mode="json")

    site.answers["cancel"] = cancel
    page.goto(f"{site.url}/page/")
    site.stream()
    button(page).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel this task?")).to_be_enabled()
    page.keyboard.press("Enter")
    shows(page, row, "Cancelling…")
    expect(bar(page, row).locator("button")).to_be_disabled()
    # The keyboard focus stays.
    expect(bar(page, row)).to_be_focused()
    with site.changed:
        held = False
        site.changed.notify_all()
    expect(bar(page, row).locator("button")).to_be_hidden()
    shows(page, row, "Cancelling…")
    expect(part(page, row, "announcer")).to_contain_text("Cancelling…")
    [request] = site.asked("cancel")
    assert request.method == "POST"
    assert request.path == f"/tasks/{row.pk}/cancel/"
    assert request.headers["accept"] == "application/json"
    assert "csrfmiddlewaretoken" in request.body["raw"][0]
    site.stream().send("task_cancelled", row)
    shows(page, row, "Cancelled")
    expect(bar(page, row)).to_be_focused()


def test_cancel_of_a_finished_task(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    site.stream()
    site.rows[str(row.pk)] = task(pk=row.pk, status="completed", progress=1.0)
    site.answers["cancel"] = (409, {"detail": "already finished"})
    press(page)
    shows(page, row, "Completed", "1")
    expect(part(page, row, "notice")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "notice"),
    [
        (403, "You don't have permission to cancel this task."),
        (404, "You don't have permission to cancel this task."),
        (500, "The task could not be cancelled. Try again."),
    ],
)
def test_refused_cancel(page: Page, serve: Serve, status: int, notice: str) -> None:
    row = task()
    site = serve(row)
    site.answers["cancel"] = (status, {})
    page.goto(f"{site.url}/page/")
    site.stream()
    press(page)
    expect(part(page, row, "notice")).to_have_text(notice)
    shows(page, row, "Running")
    expect(button(page)).to_be_enabled()
    expect(button(page)).to_be_focused()
    # The user can try again.
    row.cancel_requested_at = row.started_at
    site.answers["cancel"] = (200, row.info().model_dump(mode="json"))
    press(page)
    shows(page, row, "Cancelling…")
    expect(part(page, row, "notice")).to_be_hidden()


def test_cancel_without_a_network(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    site.stream()
    page.route("**/cancel/", lambda route: route.abort())
    press(page)
    expect(part(page, row, "notice")).to_have_text("The task could not be cancelled. Try again.")


def test_cancel_without_javascript(browser: Browser, serve: Serve) -> None:
    row = task(progress=0.25, progress_text="reading")
    site = serve(row)
    site.answers["cancel"] = (302, {})
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        shows(page, row, "Running", "0.25", "reading")
        row.progress = 0.5
        page.get_by_role("link", name="Refresh").click()
        shows(page, row, "Running", "0.5", "reading")
        button(page).click()
        expect(page).to_have_title("Elsewhere")
    [request] = site.asked("cancel")
    assert request.body["next"] == ["/page/"]
    assert request.body["csrfmiddlewaretoken"]
    assert site.streams == []
