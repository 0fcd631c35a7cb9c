"""The README's site, built and run as the README says."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.docs.pages import GUIDE, README, snippets
from tests.docs.site import Shell, hidden_fields

pytestmark = pytest.mark.once


def test_site_runs_a_task_started_on_its_page(site: httpx.Client) -> None:
    """And the guide's reader follows its stream."""
    page = site.get("/")
    page = site.post("/", data=hidden_fields(page) | {"below": "150000"})

    [task_id] = re.findall(r'task-id="([0-9a-f-]+)"', page.text)
    [reader] = [snippet.text for snippet in snippets(GUIDE) if "def follow(" in snippet.text]
    names: dict[str, Any] = {}
    exec(reader, names)
    url = str(site.base_url.join(f"/tasks/{task_id}/stream/"))
    messages = list(names["follow"](url, site.cookies["sessionid"]))
    assert messages[0][0] == "task_status"
    assert messages[-1][0] == "task_completed"
    assert messages[-1][1]["result"] == 13_848

    assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(assets) == 2
    for asset in assets:
        assert site.get(asset).status_code == 200

    assert "13,848 primes below 150,000" in site.get("/").text


def test_site_refuses_an_invalid_parameter(site: httpx.Client) -> None:
    before = site.get("/")
    page = site.post("/", data=hidden_fields(before) | {"below": "many"})

    assert "below: Input should be a valid integer" in page.text
    assert page.text.count("<task-progress") == before.text.count("<task-progress")


def test_cron_line_works(readme_shell: Shell) -> None:
    [line] = re.findall(r"&& (\.venv/bin/python manage\.py .+)", README.read_text())

    assert "finished tasks" in readme_shell.run(line.removeprefix(".venv/bin/"))
