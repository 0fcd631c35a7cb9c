"""The README's site of one's own, built and run as the README says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse

from tests.docs.pages import README, ROOT, Snippet, section, snippets
from tests.harness import PATIENCE, eventually, free_port

TITLE = "Add it to a site of your own in ten minutes"
#: What prepares the environment, which the tests have already.
SETUP = ("python3 -m venv", ". .venv", "python -m pip")
SERVERS = ("python manage.py run_tasks", "python -m uvicorn")
NAME, PASSWORD = "ada", "a-password-of-hers"


def commands() -> list[str]:
    """The commands of the section, in order."""
    text = section(README, TITLE)
    blocks = [block.text for block in snippets(README, "sh") if block.text.rstrip() in text]
    return [line for block in blocks for line in block.splitlines()]


def files() -> list[Snippet]:
    return [snippet for snippet in snippets(README) if snippet.file]


class Shell:
    """Runs the README's commands in the new site's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours = ("DATABASE_URL", "DATA_DIR", "DJANGO_SETTINGS_MODULE", "TEST_DATABASE_FILE")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error::RuntimeWarning",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DJANGO_SUPERUSER_USERNAME": NAME,
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
            "DJANGO_SUPERUSER_EMAIL": "ada@example.com",
        }

    def run(self, command: str) -> str:
        done = subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def serve(self, command: str) -> Iterator[Path]:
        """Run a command until the end of the block; give the file of its output."""
        log = self.folder / f"{abs(hash(command))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield log
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The site, built from the README's files and commands, up to those that serve it."""
    shell = Shell(tmp_path_factory.mktemp("site"))
    before = [line for line in commands() if line.startswith("django-admin")]
    before += [line for line in commands() if "startapp" in line]
    for command in before:
        shell.run(command)
    for snippet in files():
        path = shell.folder / str(snippet.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text() if "append" in snippet.options else ""
        path.write_text(kept + snippet.text)
    for command in commands():
        if command in before or command.startswith((*SETUP, *SERVERS)):
            continue
        shell.run(f"{command} --noinput" if "createsuperuser" in command else command)
    return shell


@pytest.fixture(scope="module")
def site(shell: Shell) -> Iterator[httpx.Client]:
    """The site, served by the README's commands, with somebody who has logged in."""
    port = free_port()
    with ExitStack() as stack:
        logs = [
            stack.enter_context(shell.serve(re.sub(r"--port \d+", f"--port {port}", command)))
            for command in commands()
            if command.startswith(SERVERS)
        ]
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True, timeout=10)
        )

        def login_page() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                return client.get("/")
            return None

        page = eventually(login_page, what="the web server answers")
        who = {"username": NAME, "password": PASSWORD}
        page = client.post(str(page.url), data=who | hidden_fields(page))
        assert page.url.path == "/", page.text
        yield client
        assert "Traceback" not in "".join(log.read_text() for log in logs)


def hidden_fields(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of a page's first form."""
    form = page.text.partition("<form")[2].partition("</form>")[0]
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    assert "csrfmiddlewaretoken" in dict(hidden), page.text
    return dict(hidden)


def test_site_runs_a_task_started_on_its_page(site: httpx.Client) -> None:
    page = site.get("/")
    page = site.post("/", data=hidden_fields(page) | {"below": "150000"})

    [task_id] = re.findall(r'task-id="([0-9a-f-]+)"', page.text)
    with connect_sse(site, "GET", f"/tasks/{task_id}/stream/") as source:
        events = [(event.event, json.loads(event.data)) for event in source.iter_sse()]
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "task_status"
    assert kinds[-1] == "task_completed"
    assert events[-1][1]["data"]["result"] == 13_848

    assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(assets) == 2
    for url in assets:
        assert site.get(url).status_code == 200

    assert "13,848 primes below 150,000" in site.get("/").text


def test_site_refuses_a_wrong_parameter(site: httpx.Client) -> None:
    before = site.get("/")
    page = site.post("/", data=hidden_fields(before) | {"below": "many"})

    assert "below: Input should be a valid integer" in page.text
    assert page.text.count("<task-progress") == before.text.count("<task-progress")


def test_line_for_cron_works(shell: Shell) -> None:
    [line] = re.findall(r"&& (\.venv/bin/python manage\.py .+)", README.read_text())

    assert "finished tasks" in shell.run(line.removeprefix(".venv/bin/"))
