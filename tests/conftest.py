from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.test import Client

from tasks_app.models import Worker
from tests.harness import Process, Viewer, Web, ended, eventually

pytest_plugins = ["tests.clocks", "tests.flush", "tests.leaks", "tests.slow"]

# Restore Ctrl-C: a shell starts background commands with SIGINT ignored, and their child processes
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: how long an example takes depends on how busy the machine is.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# Each test client has its own middleware. Without this, each WhiteNoise would list all static
# files.
settings.WHITENOISE_AUTOREFRESH = True
# The site's own processes still accept such a password.
PBKDF2PasswordHasher.iterations = 1

#: Leases are short in tests, so that a test can wait until they expire.
LEASE = {"TASK_LEASE_SECONDS": "2", "TASK_HEARTBEAT_SECONDS": "0.5"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests first, so that the run does not end waiting for one of them."""
    slow = {"chaos", "processes", "browser", "test_permission_matrix.py"}
    items.sort(key=lambda item: slow.isdisjoint(item.path.parts))


@pytest.fixture
def processes(transactional_db: None) -> Iterator[list[Process]]:
    with ended([]) as started:
        yield started


@pytest.fixture
def start_worker(processes: list[Process], tmp_path: Path) -> Callable[..., Process]:
    """Start `manage.py run_tasks` with options; return once the worker has registered."""

    def start(*options: str, ready: bool = True, **environment: str) -> Process:
        log = tmp_path / f"worker-{len(processes)}.log"
        worker = Process(["manage.py", "run_tasks", *options], log, **{**LEASE, **environment})
        processes.append(worker)
        if ready:
            eventually(
                lambda: Worker.objects.filter(pid=worker.pid).exists(),
                what=f"the worker registers: {worker.output}",
            )
        return worker

    return start


@pytest.fixture
def start_web(processes: list[Process], tmp_path: Path) -> Callable[..., Web]:
    def start(port: int | None = None, **environment: str) -> Web:
        web = Web(tmp_path / f"web-{len(processes)}.log", port, **environment)
        processes.append(web)
        return web

    return start


@pytest.fixture
def owner(transactional_db: None) -> User:
    return User.objects.create_user("ada", password="ada")


@pytest.fixture
def cookie(owner: User) -> str:
    """Return the owner's session cookie."""
    client = Client()
    client.force_login(owner)
    return client.cookies["sessionid"].value


@pytest.fixture
def watch(cookie: str) -> Iterator[Callable[..., Viewer]]:
    """Open streams as the owner, or with another session."""
    viewers: list[Viewer] = []

    def open_stream(url: str, session: str = cookie, last_event_id: str = "") -> Viewer:
        viewers.append(Viewer(url, session, last_event_id))
        return viewers[-1]

    yield open_stream
    for viewer in viewers:
        viewer.leave()


@pytest.fixture
def reins(tmp_path: Path) -> Path:
    """Return the file that holds back a Steps task: write the number of steps it may take."""
    path = tmp_path / "reins"
    path.write_text("0")
    return path
