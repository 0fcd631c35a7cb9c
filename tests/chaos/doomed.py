"""Real processes that kill themselves at a failpoint.

They are forked from a process that has imported everything: a fast start allows ten times as many
kills. To run one by hand: python -m tests.chaos.doomed FAILPOINT N COMMAND …. COMMAND is one of
manage.py's or `serve PORT`. FAILPOINT `never` lets it live.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path
from signal import Signals

import django
import uvicorn
from django.core.management import execute_from_command_line

django.setup()

# Imported for the forked processes.
import project.asgi  # noqa: E402
import project.urls  # noqa: E402, F401
import tasks_app.management.commands.cleanup_tasks  # noqa: E402
import tasks_app.management.commands.run_tasks  # noqa: E402, F401
from tests.chaos.failpoints import arm  # noqa: E402

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos.doomed"])


class Doomed:
    """A process. Its output goes to a file."""

    def __init__(self, log: Path, failpoint: str, passes: int, *command: str) -> None:
        self.log = log
        log.touch()
        arguments = (str(log), failpoint, str(passes), *command)
        self._process = CONTEXT.Process(target=_begin, args=arguments, name=log.stem)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def send(self, number: Signals) -> None:
        # It may end at any time.
        with contextlib.suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.pid, number)

    def wait(self, within: float) -> int | None:
        self._process.join(within)
        return self.code

    def end(self) -> None:
        if self.code is None:
            self._process.kill()
        self._process.join()


def _begin(log: str, failpoint: str, passes: str, *command: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main(failpoint, passes, *command)


def main(failpoint: str, passes: str, *command: str) -> None:
    if failpoint != "never":
        arm(failpoint, int(passes))
    match command:
        case ("serve", port):
            uvicorn.run("project.asgi:application", port=int(port), log_level="warning")
        case _:
            execute_from_command_line(["manage.py", *command])


if __name__ == "__main__":
    main(*sys.argv[1:])
