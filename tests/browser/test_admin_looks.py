"""Legibility of the admin's pages: contrast in Django's themes, and without any of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

from tasks_app.models import Task
from tasks_app.states import Status
from tests import rows
from tests.browser.test_admin import LIST, log_in, operator
from tests.browser.test_admin_start import FORM
from tests.browser.test_looks import luminance
from tests.harness import Web

__all__ = ["operator"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

OVERVIEW = reverse("admin:tasks_app_task_overview")

#: Elements that must contrast with their background: the property and the ratio (WCAG 2, AA).
LIST_SHAPES = {
    ".task-status, .task-path, .task-said, .task-error, .task-badge": ("color", 4.5),
    ".task-button, .task-filter > summary, .task-live-state": ("color", 4.5),
    ".task-button, .task-filter > summary, .task-bar, .task-badge": ("borderTopColor", 3),
}
OVERVIEW_SHAPES = {
    ".overview-live [data-part=pause], [data-part=state]": ("color", 4.5),
    ".overview-key, .overview-most": ("color", 4.5),
    ".worker-presence, .overview-numbers dd": ("color", 4.5),
    ".overview-live [data-part=pause], .task-tools .task-button": ("borderTopColor", 3),
    ".overview-ground, .overview-failed, .overview-cancelled": ("stroke", 3),
    ".overview-completed": ("fill", 3),
}

TASK_SHAPES = {
    ".task-acts .task-button, .task-path, .task-error, .task-facts dt, .task-note": ("color", 4.5),
    ".task-acts .task-button, .task-bar-module progress": ("borderTopColor", 3),
}
START_SHAPES = {
    ".task-submit .task-button, .start-description, .form-row label, .help": ("color", 4.5),
    ".form-row :is(input, select, textarea):not([type=checkbox])": ("borderTopColor", 3),
    ".task-submit .task-button": ("borderTopColor", 3),
}

COLOURS = """([selector, property]) => {
  const canvas = document.createElement("canvas").getContext("2d");
  const rgb = (...colours) => {
    for (const colour of colours) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const grounds = (element) => element
    ? [...grounds(element.parentElement), getComputedStyle(element).backgroundColor] : ["white"];
  return [...document.querySelectorAll(selector)]
    .filter((element) => element.checkVisibility())
    .map((element) => {
      const ground = rgb(...grounds(property === "color" ? element : element.parentElement));
      return [element.outerHTML.slice(0, 80), rgb(...grounds(element.parentElement)), ground,
        rgb(`rgb(${ground})`, getComputedStyle(element)[property])];
    });
}"""


def contrast(page: Page, shapes: dict[str, tuple[str, float]]) -> tuple[list[Any], set[float]]:
    """Return what has too little contrast, and the luminance of the backgrounds."""
    faint, grounds = [], set()
    for selector, (name, least) in shapes.items():
        found = page.evaluate(COLOURS, [selector, name])
        assert found, selector
        for element, behind, ground, colour in found:
            lights = sorted((luminance(colour), luminance(ground)), reverse=True)
            ratio = (lights[0] + 0.05) / (lights[1] + 0.05)
            grounds.add(luminance(behind))
            if ratio < least:
                faint.append((element, name, round(ratio, 2)))
    return faint, grounds


@pytest.mark.parametrize(("scheme", "themed"), [("light", True), ("dark", True), ("light", False)])
def test_contrast(
    browser: Browser, operator: User, start_web: Callable[..., Web], scheme: Any, themed: bool
) -> None:
    """Without Django's stylesheets too: other admin themes define none of its colours."""
    here = rows.worker()
    for status in Status:
        rows.saved(status, age=timedelta(minutes=3), max_attempts=2)
    lost = rows.saved(Status.RUNNING, worker=here, progress=0.4, progress_text="on its way")
    rows.lapse(lost, timedelta(minutes=1))
    rows.saved(Status.CANCELLED, stuck=True, age=timedelta(minutes=2))
    failed = Task.objects.filter(status=Status.FAILED).get()
    web = start_web()
    with browser.new_context(color_scheme=scheme) as context:
        log_in(context, web, operator)
        page = context.new_page()
        if not themed:
            page.route("**/static/admin/css/**", lambda route: route.abort())
        for url, shapes in (
            (LIST, LIST_SHAPES),
            (OVERVIEW, OVERVIEW_SHAPES),
            (reverse("admin:tasks_app_task_change", args=[failed.pk]), TASK_SHAPES),
            (FORM, START_SHAPES),
        ):
            page.goto(f"{web.url}{url}")
            if shapes in (LIST_SHAPES, OVERVIEW_SHAPES):
                expect(page.get_by_text("Live", exact=True)).to_be_visible()
            faint, grounds = contrast(page, shapes)
            assert faint == []
            assert all((ground < 0.5) is (scheme == "dark") for ground in grounds)


def test_row_at_an_ordinary_width(
    page: Page, operator: User, start_web: Callable[..., Web]
) -> None:
    """A time stays on one line, and a dotted name breaks at its dots."""
    rows.saved(Status.RUNNING, name="warehouse.imports.tasks.ImportRunways")
    web = start_web()
    log_in(page.context, web, operator)
    page.goto(f"{web.url}{LIST}")
    lines = page.evaluate(
        """() => {
          const lines = [];
          for (const node of document.querySelector(".field-task .task-path").childNodes) {
            if (node.nodeType !== Node.TEXT_NODE) continue;
            const range = document.createRange();
            range.selectNodeContents(node);
            lines.push([node.data, range.getClientRects().length]);
          }
          return lines;
        }"""
    )
    assert [text for text, _ in lines] == ["warehouse.", "imports.", "tasks.", "ImportRunways"]
    assert {count for _, count in lines} == {1}
    times = page.evaluate(
        """() => [...document.querySelectorAll(".field-times .task-fact")]
          .filter((fact) => fact.checkVisibility())
          .map((fact) => fact.clientHeight / parseFloat(getComputedStyle(fact).lineHeight))"""
    )
    assert times
    assert max(times) < 1.5
