from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.docs.site import NAME, PASSWORD, SERVERS, SETUP, Shell, commands, files, hidden_fields
from tests.harness import eventually, free_port


@pytest.fixture(scope="session")
def readme_shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Build the README's site from its files and commands, except those that start servers."""
    shell = Shell(tmp_path_factory.mktemp("site"))
    before = [line for line in commands() if line.startswith("django-admin")]
    before += [line for line in commands() if "startapp" in line]
    for command in before:
        shell.run(command)
    for snippet in files():
        path = shell.folder / str(snippet.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        before_it = path.read_text() if "append" in snippet.options else ""
        path.write_text(before_it + snippet.text)
    for command in commands():
        if command in before or command.startswith((*SETUP, *SERVERS)):
            continue
        shell.run(f"{command} --noinput" if "createsuperuser" in command else command)
    return shell


@pytest.fixture(scope="session")
def site(readme_shell: Shell) -> Iterator[httpx.Client]:
    """Serve the site with the README's commands, and log a user in."""
    port = free_port()
    with ExitStack() as stack:
        logs = [
            stack.enter_context(
                readme_shell.serve(re.sub(r"--port \d+", f"--port {port}", command))
            )
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
        credentials = {"username": NAME, "password": PASSWORD}
        page = client.post(str(page.url), data=credentials | hidden_fields(page))
        assert page.url.path == "/", page.text
        yield client
        assert "Traceback" not in "".join(log.read_text() for log in logs)
