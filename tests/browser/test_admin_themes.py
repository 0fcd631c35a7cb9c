"""The admin's pages in other themes, as a browser renders them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from playwright.sync_api import Page, expect

from tasks_app.models import Task
from tasks_app.states import Status
from tests import rows
from tests.browser.test_admin import LIST, log_in, operator
from tests.browser.test_admin_start import FORM, OVERVIEW, WORKERS
from tests.harness import Web

__all__ = ["operator"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

#: Elements drawn without a border that must have one.
BARE = """() => [...document.querySelectorAll(
    ".task-button, .task-input, .task-start .form-row :is(input, select, textarea)")]
  .filter((element) => element.checkVisibility() && element.type !== "checkbox")
  .filter((element) => parseFloat(getComputedStyle(element).borderTopWidth) < 1)
  .map((element) => element.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("theme", ["jazzmin", "unfold"])
def test_theme(page: Page, operator: User, start_web: Callable[..., Web], theme: str) -> None:
    # One more than a page of the list.
    Task.objects.bulk_create(rows.row(Status.FAILED) for _ in range(101))
    worker = rows.worker()
    web = start_web(DJANGO_SETTINGS_MODULE="tests.themed", ADMIN_THEME=theme)
    log_in(page.context, web, operator)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for url in (
            OVERVIEW,
            WORKERS,
            reverse("admin:tasks_app_worker_change", args=[worker.pk]),
            reverse("admin:tasks_app_task_change", args=[Task.objects.all()[0].pk]),
            FORM,
            LIST,
        ):
            page.goto(f"{web.url}{url}")
            assert f"/static/{theme}/" in page.content()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, url
            assert page.evaluate(BARE) == [], url

    # Only one line about the selection at a time.
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(page.locator(".actions :is(.all, .question, .clear)")).to_have_count(3)
    seen = page.locator(".actions :is(.all, .question, .clear):visible")
    expect(seen).to_have_count(0)
    page.locator("#action-toggle").check()
    expect(seen).to_have_text(["Select all 101 matching tasks"])
    seen.get_by_role("button").click()
    expect(seen).to_have_text(["All matching tasks selected", "Clear selection"])

    # Collapsed parts can be opened.
    page.goto(f"{web.url}{FORM}")
    page.get_by_text("Options", exact=True).click()
    expect(page.get_by_label("Unique key")).to_be_visible()
