"""A page with 100 bars on the usual servers, with their own limits and defaults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest
from django.contrib.auth.models import User
from playwright.sync_api import BrowserContext, Page, expect

from tasks_app.models import Task
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim
from tests import rows
from tests.docs.pages import ROOT, snippets
from tests.harness import PATIENCE, Web, eventually, free_port

from .pages import PATIENT, part
from .test_admin import log_in, said

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.once]

SITE = {"DJANGO_SETTINGS_MODULE": "tests.bars_site"}
# Debian installs it where only root's PATH leads.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
NO_NGINX = pytest.mark.skipif(
    NGINX is None and not os.environ.get("CI"), reason="no nginx; `apt-get install nginx`"
)
#: The minimal configuration of nginx; everything else is its default.
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""


def documented(server: str) -> str:
    """Return the command from the docs that starts a server, for this project's site."""
    blocks = [block.text for block in snippets(ROOT / "docs" / "operations.md", "sh")]
    [command] = [
        line
        for block in blocks
        for line in block.splitlines()
        if line.startswith("python -m gunicorn") and server in line
    ]
    return command.removeprefix("python ").replace("mysite.", "project.")


@pytest.fixture
def moving(owner: User) -> tuple[Task, Claim]:
    """The one of the owner's 100 running tasks that reports."""
    task, claim = rows.claimed(owner=owner)
    for _ in range(99):
        rows.saved(Status.RUNNING, owner=owner)
    return task, claim


@contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[str]:
    port = free_port()
    (folder / "nginx.conf").write_text(
        CONFIGURATION.format(folder=folder, port=port, upstream=upstream)
    )
    command = [str(NGINX), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, "nginx has ended"
        try:
            return httpx.get(f"{url}/login/").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(answers, what="nginx answers")
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize(
    "proxied", [pytest.param(False, id="alone"), pytest.param(True, id="nginx", marks=NO_NGINX)]
)
def test_gunicorn_with_uvicorn_worker(
    page: Page,
    context: BrowserContext,
    start_web: Callable[..., Web],
    owner: User,
    moving: tuple[Task, Claim],
    tmp_path: Path,
    proxied: bool,
) -> None:
    task, claim = moving
    web = start_web(command=documented("uvicorn_worker"), **SITE)
    log_in(context, web, owner)
    page.add_init_script(PATIENT)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with nginx(web.url, tmp_path) if proxied else nullcontext(web.url) as url:
        with page.expect_response("**/tasks/stream/**") as opened:
            page.goto(f"{url}/bars/")
        assert opened.value.status == 200
        expect(page.locator("task-progress")).to_have_count(100)
        lifecycle.report({claim: said("half of it", 0.5)})
        expect(part(page, task, "text")).to_have_text("half of it")
        expect(page.locator('[data-part="hint"]:visible')).to_have_count(0)
        streams = [address for address in asked if "/stream/" in address]
        assert [address.count("task=") for address in streams] == [100]
        assert not [address for address in asked if "/status/" in address]
        web.send(signal.SIGTERM)
        # An open stream would use all of gunicorn's 30 seconds of grace.
        web.wait(15)
        expect(part(page, task, "text")).to_have_text("half of it")


def test_gunicorn_with_its_own_worker(
    page: Page,
    context: BrowserContext,
    start_web: Callable[..., Web],
    owner: User,
    moving: tuple[Task, Claim],
) -> None:
    """It uses WSGI: bars poll every few seconds, and request no stream."""
    task, claim = moving
    command = "-m gunicorn django.core.wsgi:get_wsgi_application() --access-logfile -"
    web = start_web(command=f"{command} --bind 127.0.0.1:8000", **SITE)
    log_in(context, web, owner)
    page.clock.install()
    page.goto(f"{web.url}/bars/")
    lifecycle.report({claim: said("half of it", 0.5)})
    page.clock.run_for(10_000)
    expect(part(page, task, "text")).to_have_text("half of it")
    expect(part(page, task, "hint")).to_have_text("Updates every few seconds.")
    assert "/tasks/status/" in web.output
    assert "/stream/" not in web.output
    assert " 501 " not in web.output
    # If it were killed, its worker would stay for a moment.
    web.send(signal.SIGINT)
    web.wait()
