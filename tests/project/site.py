"""The site as `make run` serves it: real processes with their own data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60


def environment(data: Path, port: int | str) -> dict[str, str]:
    """Return an environment in which `project.run` uses only its own data."""
    return {
        **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
        "DATA_DIR": str(data),
        "PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


class RunningSite:
    """`python -m project.run`, and the lines that it has printed."""

    def __init__(self, data: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._printed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "project.run"],
            cwd=ROOT,
            env=environment(data, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                with self._printed:
                    self.lines.append(line.rstrip("\n"))
                    self._printed.notify_all()

    def printed(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until such a line was printed this many times, and return the newest match."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._printed:
            enough = self._printed.wait_for(lambda: len(found()) >= times, READY_SECONDS)
        assert enough, f"{pattern!r} was not printed:\n" + "\n".join(self.lines)
        return found()[-1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(READY_SECONDS)
        self._reader.join(READY_SECONDS)
        return code


@contextmanager
def running(data: Path) -> Iterator[RunningSite]:
    """Run the site until the end of the block."""
    site = RunningSite(data, free_port())
    try:
        site.printed("^Login: ")
        yield site
    finally:
        if site.process.poll() is None:
            site.stop()
