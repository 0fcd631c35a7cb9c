"""The README's site: its files, its commands, and a shell in its folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.docs.pages import README, ROOT, Snippet, section, snippets
from tests.harness import PATIENCE

TITLE = "Add it to your own site in ten minutes"
#: Commands that prepare the environment. The tests have one already.
SETUP = ("python3 -m venv", ". .venv", "python -m pip")
SERVERS = ("python manage.py run_tasks", "python -m uvicorn")
NAME, PASSWORD = "ada", "a-password-of-hers"


def commands() -> list[str]:
    """Return the commands of the section, in order."""
    text = section(README, TITLE)
    blocks = [block.text for block in snippets(README, "sh") if block.text.rstrip() in text]
    return [line for block in blocks for line in block.splitlines()]


def files() -> list[Snippet]:
    return [snippet for snippet in snippets(README) if snippet.file]


def hidden_fields(page: httpx.Response) -> dict[str, str]:
    """Return the hidden fields of a page's first form."""
    form = page.text.partition("<form")[2].partition("</form>")[0]
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    assert "csrfmiddlewaretoken" in hidden, page.text
    return hidden


class Shell:
    """Runs the README's commands in the new site's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours = ("DATABASE_URL", "DATA_DIR", "DJANGO_SETTINGS_MODULE", "TEST_DATABASE_FILE")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "PYTHONPATH": str(ROOT),
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
        """Run a command until the end of the block, and yield the file of its output."""
        log = self.folder / f"{command.split()[2]}.log"
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
