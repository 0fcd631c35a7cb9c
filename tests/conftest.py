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

pytest_plugins = ["tests.clocks", "tests.leaks"]

# Processes inherit that nobody hears of Ctrl-C, as what a shell starts in the background does not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes tells how busy the machine is.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# Each client of a test has middleware of its own, and WhiteNoise's would list all static files.
settings.WHITENOISE_AUTOREFRESH = True
# Still a password that the site's own processes accept.
PBKDF2PasswordHasher.iterations = 1

#: Leases are short in tests, so that one can wait until they run out.
LEASE = {"TASK_LEASE_SECONDS": "2", "TASK_HEARTBEAT_SECONDS": "0.5"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that nobody waits for it alone in the end."""
    slow = {"chaos", "processes", "browser", "test_permission_matrix.py"}
    items.sort(key=lambda item: slow.isdisjoint(item.path.parts))


@pytest.fixture
def processes(transactional_db: None) -> Iterator[list[Process]]:
    with ended([]) as started:
        yield started


@pytest.fixture
def start_worker(processes: list[Process], tmp_path: Path) -> Callable[..., Process]:
    """Start `manage.py run_tasks` with options; return once it works."""

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
    """The session of the owner, logged in."""
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
    """What holds a Steps task back; write the number of steps it may take."""
    path = tmp_path / "reins"
    path.write_text("0")
    return path
