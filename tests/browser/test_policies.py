"""Bars under Content Security Policies, and if a policy or a proxy blocks the script."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from .pages import bar, part, shows
from .scripted import Serve, task

pytestmark = pytest.mark.browser

STRICT = "; ".join(
    [
        "script-src 'nonce-a+b/c=' 'strict-dynamic'",
        "style-src 'nonce-a+b/c='",
        "object-src 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types tasks_app",
    ]
)


def test_strict_policy_with_nonces_and_trusted_types(page: Page, serve: Serve) -> None:
    """The `page` fixture fails at any violation of the policy."""
    old, new = task(name="old"), task(name="new", status="pending")
    site = serve(old)
    site.template = "{% task_list tasks follow=True %}"
    site.policy, site.nonce = STRICT, "a+b/c="
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(old, 0.5)
    shows(page, old, "Running", "0.5")
    expect(bar(page, old)).to_have_css("display", "grid")
    site.rows = {str(new.pk): new, **site.rows}
    stream.send("task_queued", new, run_after=new.run_after.isoformat())
    shows(page, new, "Waiting to start")


def test_page_without_its_script_offers_a_refresh(page: Page, serve: Serve) -> None:
    row = task(progress=0.25)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    site.stream()
    expect(part(page, row, "refresh")).to_be_hidden()
    site.answers["task-progress.js"] = (404, {})
    page.goto(f"{site.url}/page/")
    expect(part(page, row, "refresh")).to_be_visible()
    shows(page, row, "Running", "0.25")
