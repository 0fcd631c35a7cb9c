"""Run the whole site for `make run`: a web server and a worker, restarted until Ctrl-C."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import django
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.urls import reverse

HOST = "127.0.0.1"
NAME = "demo"
PASSWORD = "demo-airports"  # noqa: S105  # only this machine can reach the site

READY_SECONDS = 60
#: A child that lives shorter than this failed at its start. The site ends after this many in a row.
SHORT_LIFE_SECONDS = 10
MAX_SHORT_LIVES = 5
#: Children are killed this long after the end of their own grace period.
PATIENCE_SECONDS = 5
#: One Ctrl-C can arrive twice, from the terminal and from `make`. A later one means "stop now".
SAME_SIGNAL_SECONDS = 0.5

PR_SET_PDEATHSIG = 1


class Unable(Exception):
    """The site cannot run. The message gives the reason and the remedy."""


class Child:
    """One process that is restarted when it ends."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.command = command
        self.short_lives = 0
        self.start_at = self.started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            cwd=settings.BASE_DIR,
            # In its own process group, so that Ctrl-C reaches only this parent, which passes it on.
            process_group=0,
            preexec_fn=_end_with_parent,
        )

    def keep_alive(self) -> None:
        """Restart it if it has ended. Raises Unable if it keeps ending soon after its start."""
        if self.process is None:
            if time.monotonic() >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        lived = time.monotonic() - self.started_at
        self.short_lives = self.short_lives + 1 if lived < SHORT_LIFE_SECONDS else 0
        if self.short_lives >= MAX_SHORT_LIVES:
            raise Unable(
                f"The {self.name} ended {how}, {MAX_SHORT_LIVES} times in a row. See its messages "
                f"above."
            )
        wait = 0.5 * 2**self.short_lives if self.short_lives else 0.0
        say(f"The {self.name} ended {how}. Restarting it" + (f" in {wait:g} s." if wait else "."))
        self.process = None
        self.start_at = time.monotonic() + wait

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most this many seconds."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)


class Stop:
    """The stop requests that arrived as signals so far: none, one, or a second to stop now."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.immediate = threading.Event()
        self._first = 0.0

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._hear)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested.is_set():
            self._first = time.monotonic()
            self.requested.set()
        elif time.monotonic() - self._first > SAME_SIGNAL_SECONDS:
            self.immediate.set()


def main() -> int:
    os.umask(0o077)  # Only this user can read the database and all other files.
    stop = Stop()
    stop.listen()
    children: list[Child] = []
    try:
        port = free_port()
        prepare()
        if stop.requested.is_set():
            return 0
        children += [web(port), worker()]
        for child in children:
            child.start()
        wait_until(lambda: web_answers(port), "web server", children, stop)
        wait_until(lambda: worker_works(children[1]), "worker", children, stop)
        if not stop.requested.is_set():
            say(f"Site: http://{HOST}:{port}/")
            say(f"Login: {NAME} / {known_password()}")
            say("Press Ctrl-C to stop.")
        while not stop.requested.wait(0.2):
            for child in children:
                child.keep_alive()
    except Unable as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    finally:
        end(children, stop)
    return 0


def free_port() -> int:
    """Return the port to serve on. Raises Unable if PORT is not a port number or is taken."""
    port = os.environ.get("PORT") or "8000"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise Unable(f"PORT must be a number from 1 to 65535, not {port!r}.")
    with socket.socket() as probe:
        # As the server does: a port that was released a moment ago counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(port)))
        except OSError as error:
            raise Unable(
                f"Cannot use port {port}: {error.strerror}. Stop the program that uses it, or "
                f"choose another: make run PORT={int(port) + 1 if int(port) < 65535 else 8000}"
            ) from error
    return int(port)


def prepare() -> None:
    """Create or migrate the database, and create a user who can log in."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    if not users.filter(username=NAME).exists():
        users.create_superuser(NAME, password=PASSWORD)
    connection.close()


def web(port: int) -> Child:
    options = ["--host", HOST, "--port", str(port), "--timeout-graceful-shutdown", "3"]
    quiet = ["--no-access-log", "--log-level", "warning"]
    return Child(
        "web server",
        [sys.executable, "-m", "uvicorn", "project.asgi:application", *options, *quiet],
    )


def worker() -> Child:
    manage = str(settings.BASE_DIR / "manage.py")
    return Child("worker", [sys.executable, manage, "run_tasks", "--verbosity", "0"])


def wait_until(ready: Callable[[], bool], name: str, children: list[Child], stop: Stop) -> None:
    """Return when it is ready or the site is to stop. Raises Unable after READY_SECONDS."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if stop.requested.wait(0.05):
            return
        if time.monotonic() > deadline:
            raise Unable(
                f"The {name} is not ready after {READY_SECONDS} s. See the messages above."
            )
        for child in children:
            child.keep_alive()


def web_answers(port: int) -> bool:
    try:
        client = http.client.HTTPConnection(HOST, port, timeout=5)
        client.request("GET", reverse("login"))
        return client.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def worker_works(child: Child) -> bool:
    if child.process is None:
        return False
    workers = apps.get_model("tasks_app", "Worker").objects
    pid = child.process.pid
    is_registered = workers.filter(pid=pid, stopped_at=None, hostname=socket.gethostname()).exists()
    connection.close()
    return is_registered


def known_password() -> str:
    """Return the password, or a note in its place if the user has changed it."""
    user = get_user_model().objects.filter(username=NAME).first()
    connection.close()
    return PASSWORD if user and user.check_password(PASSWORD) else "(the password you chose)"


def end(children: list[Child], stop: Stop) -> None:
    """Stop the children gracefully, and kill those that take too long."""
    if not any(child.alive for child in children):
        return
    say("Stopping. Running tasks have a few seconds to finish. Press Ctrl-C again to stop now.")
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + settings.TASK_SHUTDOWN_GRACE_SECONDS + PATIENCE_SECONDS
    hurried = False
    while any(child.alive for child in children):
        if stop.immediate.is_set() and not hurried:
            hurried = True
            deadline = time.monotonic() + PATIENCE_SECONDS
            for child in children:
                child.signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            for child in children:
                child.signal(signal.SIGKILL)
        for child in children:
            child.wait(0.05)
    say("Stopped.")


def say(text: str) -> None:
    print(text, flush=True)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Make the kernel end this process when its parent dies for any reason."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
