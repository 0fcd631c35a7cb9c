"""Helpers for tests of real processes: workers, web servers, viewers, and waiting."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
from django.db import connection
from httpx_sse import ServerSentEvent, connect_sse

from tasks_app.models import Task
from tasks_app.states import TERMINAL, Status

ROOT = Path(__file__).resolve().parent.parent
#: Seconds to wait. Set TEST_PATIENCE higher on a busy machine.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "30"))

T = TypeVar("T")


def eventually(look: Callable[[], T | None], *, within: float = PATIENCE, what: str = "") -> T:
    """Call `look` until it returns something true, and return that. Fail after `within` seconds."""
    begun = time.monotonic()
    pause = threading.Event()
    while not (answer := look()):
        waited = time.monotonic() - begun
        assert waited < within, f"not within {within:g} s: {what or look}"
        # Poll less often as time passes, so that a slow condition has the processor to itself.
        pause.wait(min(0.01 + waited / 20, 0.1))
    return answer


def begins(task_id: UUID) -> Task:
    """Wait until a thread has started the task. A claim alone is not enough: it may be released."""
    begun = Task.objects.filter(pk=task_id, status=Status.RUNNING).exclude(progress_text="")
    return eventually(begun.all().first, what="it begins")


def ends(task_id: UUID, within: float = PATIENCE) -> Task:
    """Wait until the task has ended, and return it."""
    return eventually(
        lambda: Task.objects.filter(pk=task_id, status__in=TERMINAL).first(),
        within=within,
        what="it ends",
    )


def database_url() -> str:
    """Return the URL of this run's database, for another process."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{settings['NAME']}"
    user, name, host = (quote(str(settings[key]), safe="") for key in ("USER", "NAME", "HOST"))
    return f"postgresql://{user}@/{name}?host={host}"


class Process:
    """A process of this project. Its output goes to a file."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.log = log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": database_url(), **environment},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for the process to exit, and return its exit code."""
        return self.process.wait(within)

    def says(self, text: str, within: float = PATIENCE) -> None:
        """Wait until the output contains a text."""
        eventually(lambda: text in self.output, within=within, what=f"{text!r} in {self.output}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self._file.close()


#: Ports for this test process, below those that the kernel assigns. The first one depends on the
#: process id, because another run may be under way.
PORTS = 2_000
_next_port = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """Return a port that no other test process takes before it is used."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_next_port, PORTS):
        port = 12_000 + worker % 8 * PORTS + number % PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("Every port of the tests is taken.")


class Web(Process):
    """The site on a server. A restart can reuse its port.

    The command is one that the docs give, with port 8000. The default is uvicorn's.
    """

    def __init__(
        self,
        log: Path,
        port: int | None = None,
        application: str = "project.asgi:application",
        command: str = "",
        **environment: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = command or f"-m uvicorn {application} --host 127.0.0.1 --port 8000"
        options = [re.sub(r"\b8000$", str(self.port), word) for word in shlex.split(command)]
        super().__init__(options, log, **environment)
        try:
            eventually(self._answers, what="the web server answers")
        except BaseException:
            self.end()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/accounts/login/", verify=False).status_code < 500
        return False


class Viewer:
    """Reads a stream in its own thread, parsed by httpx-sse, until it ends."""

    def __init__(self, url: str, cookie: str, last_event_id: str = "") -> None:
        self.events: list[ServerSentEvent] = []
        self.status = 0
        self.headers: httpx.Headers = httpx.Headers()
        self.error: Exception | None = None
        self._client = httpx.Client(
            cookies={"sessionid": cookie}, timeout=httpx.Timeout(10, read=60), verify=False
        )
        self._headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self._left = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._read, args=[url], daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        try:
            with connect_sse(self._client, "GET", url, headers=self._headers) as source:
                stream = source.response.extensions["network_stream"]
                self._socket = stream.get_extra_info("socket")
                self.headers = source.response.headers
                self.status = source.response.status_code
                if self.status == 200:
                    for event in source.iter_sse():
                        if self._left.is_set():
                            return
                        self.events.append(event)
        except (httpx.HTTPError, OSError) as error:
            if not self._left.is_set():
                self.error = error
        finally:
            self._client.close()

    def leave(self) -> None:
        """Disconnect immediately, as a closed page does."""
        self._left.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # Already closed.
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)

    def finish(self, within: float = PATIENCE) -> Viewer:
        """Wait until the server has ended the stream."""
        self._thread.join(within)
        assert not self._thread.is_alive(), f"the stream goes on: {self.types}"
        assert self.error is None, self.error
        return self

    def sees(self, event_type: str, within: float = PATIENCE) -> dict[str, Any]:
        """Wait for an event, and return its data."""

        def found() -> list[ServerSentEvent]:
            return [event for event in list(self.events) if event.event == event_type]

        eventually(found, within=within, what=f"{event_type} in {self.types}, {self.error}")
        data: dict[str, Any] = json.loads(found()[-1].data)
        return data

    @property
    def ended(self) -> bool:
        """True if the stream is over, for any reason."""
        return not self._thread.is_alive()

    @property
    def last_event_id(self) -> str:
        return self.events[-1].id if self.events else ""

    @property
    def types(self) -> list[str]:
        return [event.event for event in list(self.events)]

    @property
    def facts(self) -> list[str]:
        """The types of the facts: without state, progress and keep-alives."""
        state = {"task_status", "progress_update", "keep-alive", "stream-end"}
        return [kind for kind in self.types if kind not in state]

    def values(self, task_id: UUID) -> list[float]:
        """Return the progress values seen for a task, including the state at the opening."""
        seen = []
        for event in list(self.events):
            if event.event in ("task_status", "progress_update"):
                message = json.loads(event.data)
                data = message["data"]
                progress = data["progress"] if event.event == "task_status" else data
                if message["task_id"] == str(task_id) and progress["value"] is not None:
                    seen.append(progress["value"])
        return seen


@contextlib.contextmanager
def ended(processes: list[Process]) -> Iterator[list[Process]]:
    """End the processes that a test started, even if the test fails."""
    try:
        yield processes
    finally:
        for process in processes:
            process.end()
