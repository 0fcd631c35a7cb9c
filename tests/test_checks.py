"""The messages and hints of `manage.py check`. This project itself has none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core import checks
from django.db import connections
from django.db.utils import load_backend
from django.test import override_settings
from django_eventstream.channelmanager import DefaultChannelManager
from django_eventstream.storage import StorageBase
from ninja.security import HttpBearer  # noqa: F401 - named by its path

from tasks_app.checks import (
    CORS_MIDDLEWARE,
    check_commits,
    check_encoding,
    check_origins,
    check_settings,
    check_sqlite,
    check_streams,
    check_tasks,
    check_urls,
)
from tasks_app.live.channels import TaskChannelManager
from tasks_app.live.storage import TaskEventStorage
from tests.harness import Process, database_url, ended


class SomeChannelManager(DefaultChannelManager):
    """Lets everybody read everything, as its base does."""


class OwnChannelManager(TaskChannelManager):
    """A site's own manager, with more channels than those of tasks."""


class SomeStorage(StorageBase):
    """Does not know tasks."""


class OwnStorage(TaskEventStorage):
    """A site's own storage."""


def messages_of(check: Any) -> list[tuple[str | None, str, str | None]]:
    return [(message.id, message.msg, message.hint) for message in check(None)]


@pytest.mark.django_db  # Django's own checks ask what the database can do.
def test_this_project_is_clean() -> None:
    # Other tests have imported classes that are broken on purpose.
    assert [
        messages_of
        for messages_of in checks.run_checks()
        if "of tests." not in str(messages_of.hint)
    ] == []


def test_checks_are_registered() -> None:
    registered = checks.registry.registry.get_checks()
    ours = {check_commits, check_settings, check_sqlite, check_streams, check_tasks, check_urls}
    assert ours <= set(registered)


# URLs.


@pytest.mark.parametrize(("urls", "found"), [("tests.i18n_urls", 0), ("project.airports.urls", 1)])
def test_site_without_task_urls_gets_a_warning(urls: str, found: int) -> None:
    warning = (
        "tasks_app.W011",
        "The site's URLs do not include tasks_app.urls: progress bars do not update, "
        "and tasks have no pages.",
        'Add path("tasks/", include("tasks_app.urls")) to the urlpatterns of '
        "project.airports.urls.",
    )
    with override_settings(ROOT_URLCONF=urls):
        assert messages_of(check_urls) == [warning] * found


# Settings.


def test_each_wrong_setting_is_an_error() -> None:
    with override_settings(TASK_MAX_WORKERS=-1, TASK_LEASE_SECONDS="x"):
        assert messages_of(check_settings) == [
            (
                "tasks_app.E001",
                "TASK_MAX_WORKERS is -1. Input should be greater than 0.",
                "See the settings in docs/task_system_usage.md.",
            ),
            (
                "tasks_app.E001",
                "TASK_LEASE_SECONDS is 'x'. Input should be a valid number, "
                "unable to parse string as a number.",
                "See the settings in docs/task_system_usage.md.",
            ),
        ]
        assert all(message.level == checks.ERROR for message in check_settings(None))


def test_lease_shorter_than_two_heartbeats_is_an_error() -> None:
    with override_settings(TASK_LEASE_SECONDS=19.5, TASK_HEARTBEAT_SECONDS=10):
        assert messages_of(check_settings) == [
            (
                "tasks_app.E002",
                "TASK_LEASE_SECONDS (19.5) is shorter than two heartbeats "
                "(TASK_HEARTBEAT_SECONDS is 10).",
                "One late heartbeat would take running tasks from a live worker. "
                "Make the lease three heartbeats long.",
            )
        ]
    with override_settings(TASK_LEASE_SECONDS=20, TASK_HEARTBEAT_SECONDS=10):
        assert messages_of(check_settings) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.such.Service", "cannot be imported (No module named 'no')"),
        ("nodots", "cannot be imported (nodots doesn't look like a module path)"),
        ("os.path", "is os.path, which is not a TaskService"),
        ("tasks_app.models.Task", "is tasks_app.models.Task, which is not a TaskService"),
    ],
)
def test_missing_service_is_an_error(path: str, reason: str) -> None:
    with override_settings():
        # Without the signal, which would already import the service.
        settings.TASK_SERVICE = path
        found = messages_of(check_settings)
    assert found == [
        (
            "tasks_app.E003",
            f"TASK_SERVICE {reason}.",
            "Name a subclass of tasks_app.TaskService by its dotted path.",
        )
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.such.Token", ": No module named 'no'."),
        ("tasks_app.api.SesionAuth", ': Module "tasks_app.api" does not define'),
        ("os.path", ", which cannot be called."),
        ("tests.test_checks.HttpBearer", ": Can't instantiate abstract class HttpBearer"),
    ],
)
def test_invalid_authenticator_is_an_error(path: str, reason: str) -> None:
    with override_settings(TASK_API_AUTH=["tasks_app.api.SessionAuth", path]):
        [(found, message, hint)] = messages_of(check_settings)
    assert found == "tasks_app.E005"
    assert message.startswith(f"TASK_API_AUTH names {path!r}{reason}")
    assert hint == (
        "Name authenticators of django-ninja by their dotted paths, such as "
        "tasks_app.api.SessionAuth."
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("TASK_MAX_WORKERS = 0", "tasks_app.E001"),
        ("TASK_API_AUTH = []", "tasks_app.E001"),
        ("TASK_API_AUTH = ['shop.auth.Token']", "tasks_app.E005"),
        ("TASK_SERVICE = 'os.path'", "tasks_app.E003"),
    ],
)
@pytest.mark.slow
def test_wrong_setting_is_reported_without_a_traceback(
    tmp_path: Path, setting: str, found: str
) -> None:
    """URLs include the API, so they must import in spite of it."""
    (tmp_path / "wrong.py").write_text(f"from project.settings import *\n{setting}\n")
    check = Process(
        ["manage.py", "check"],
        tmp_path / "log",
        DJANGO_SETTINGS_MODULE="wrong",
        PYTHONPATH=str(tmp_path),
    )
    with ended([check]):
        assert check.wait() == 1
    assert f"?: ({found}) {setting.split()[0]}" in check.output
    assert "System check identified 1 issue" in check.output
    assert "Traceback" not in check.output


# Streams.


NOT_THERE = "cannot be imported (No module named 'no')"


@pytest.mark.parametrize(
    ("manager", "reason"),
    [
        ("", "is not set"),
        (None, "is not set"),
        ("no.such.Manager", NOT_THERE),
        (
            "tests.test_checks.SomeChannelManager",
            "is tests.test_checks.SomeChannelManager, which is not a TaskChannelManager",
        ),
    ],
)
def test_channel_manager_without_tasks_is_an_error(manager: str | None, reason: str) -> None:
    with override_settings(EVENTSTREAM_CHANNELMANAGER_CLASS=manager):
        assert messages_of(check_streams) == [
            (
                "tasks_app.E004",
                f"EVENTSTREAM_CHANNELMANAGER_CLASS {reason}, so nothing checks "
                "who may see which "
                "task.",
                'Set it to "tasks_app.live.channels.TaskChannelManager", or to a subclass of it.',
            )
        ]


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("", "is not set"),
        (None, "is not set"),
        ("no.such.Storage", NOT_THERE),
        (
            "tests.test_checks.SomeStorage",
            "is tests.test_checks.SomeStorage, which is not a TaskEventStorage",
        ),
    ],
)
def test_storage_without_tasks_is_a_warning(storage: str | None, reason: str) -> None:
    with override_settings(EVENTSTREAM_STORAGE_CLASS=storage):
        assert messages_of(check_streams) == [
            (
                "tasks_app.W001",
                f"EVENTSTREAM_STORAGE_CLASS {reason}, so django-eventstream's own views "
                "cannot resume the streams of tasks.",
                'Set it to "tasks_app.live.storage.TaskEventStorage".',
            )
        ]


def test_subclasses_of_the_site_pass() -> None:
    with override_settings(
        EVENTSTREAM_CHANNELMANAGER_CLASS="tests.test_checks.OwnChannelManager",
        EVENTSTREAM_STORAGE_CLASS="tests.test_checks.OwnStorage",
    ):
        assert messages_of(check_streams) == []


@override_settings(ASGI_APPLICATION=None)
def test_site_without_asgi_gets_a_warning() -> None:
    assert messages_of(check_streams) == [
        (
            "tasks_app.W002",
            "ASGI_APPLICATION is not set: under WSGI there are no streams, and pages poll.",
            "Serve the site by uvicorn or daphne, and wrap its application in "
            "tasks_app.with_task_streams.",
        )
    ]


@override_settings(EVENTSTREAM_ALLOW_ORIGIN="https://app.example", MIDDLEWARE=[CORS_MIDDLEWARE])
def test_origins_configured_twice_are_a_warning() -> None:
    assert messages_of(check_origins) == [
        (
            "tasks_app.W012",
            "EVENTSTREAM_ALLOW_ORIGIN and django-cors-headers both allow origins to read "
            "streams: an origin needs only one of them.",
            "Remove the settings EVENTSTREAM_ALLOW_…, and name the origins in "
            "CORS_ALLOWED_ORIGINS.",
        )
    ]


@pytest.mark.parametrize("origin", ["*", "https://app.example"])
def test_credentials_for_any_origin_are_a_warning(origin: str) -> None:
    with override_settings(EVENTSTREAM_ALLOW_ORIGINS=[origin], EVENTSTREAM_ALLOW_CREDENTIALS=True):
        found = messages_of(check_origins)
    assert [kind for kind, _, _ in found] == (["tasks_app.W013"] if origin == "*" else [])


# SQLite.

DEFERRED = (
    "tasks_app.W003",
    "SQLite transactions are deferred: two that read and then write fail with "
    '"database is locked", even with a long timeout.',
    'Set "transaction_mode": "IMMEDIATE" in the OPTIONS of the database.',
)
NO_WAL = (
    "tasks_app.W004",
    "SQLite is not in WAL mode: a page that reads blocks the worker's writes.",
    'Set "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" '
    "in the OPTIONS of the database.",
)
WAL = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"


Configure = Callable[..., None]


@pytest.fixture
def configure(tmp_path: Path) -> Iterator[Configure]:
    """Replace the site's database with another one. The tests do not connect to it."""
    site = connections["default"]

    def use(engine: str = "sqlite3", **options: Any) -> None:
        settings = {**site.settings_dict, "NAME": tmp_path / "new.sqlite3", "OPTIONS": options}
        backend = load_backend(f"django.db.backends.{engine}")
        connections["default"] = backend.DatabaseWrapper(settings, "default")

    yield use
    connections["default"] = site


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [DEFERRED, NO_WAL]),
        ({"transaction_mode": "IMMEDIATE", "init_command": WAL}, []),
        ({"transaction_mode": "immediate", "init_command": "pragma Journal_Mode=wal"}, []),
        ({"transaction_mode": None, "init_command": WAL}, [DEFERRED]),
        ({"transaction_mode": "DEFERRED", "init_command": WAL}, [DEFERRED]),
        ({"transaction_mode": "EXCLUSIVE", "init_command": WAL}, [DEFERRED]),
        ({"transaction_mode": "IMMEDIATE"}, [NO_WAL]),
        ({"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=DELETE"}, [NO_WAL]),
        ({"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA synchronous=NORMAL"}, [NO_WAL]),
    ],
)
def test_sqlite_options(configure: Configure, options: dict[str, Any], expected: list[Any]) -> None:
    configure(**options)
    assert messages_of(check_sqlite) == expected


@pytest.mark.parametrize(("mode", "expected"), [("WAL", []), ("DELETE", [NO_WAL])])
def test_sqlite_journal_mode_of_the_file(
    configure: Configure, tmp_path: Path, mode: str, expected: list[Any]
) -> None:
    """A file keeps its journal mode, even if another program set it."""
    file = sqlite3.connect(tmp_path / "new.sqlite3")
    file.execute(f"PRAGMA journal_mode={mode}")
    file.execute("CREATE TABLE t (x)")
    file.close()
    configure(transaction_mode="IMMEDIATE")
    assert messages_of(check_sqlite) == expected


def test_autocommit_off_is_an_error(configure: Configure) -> None:
    assert messages_of(check_commits) == []
    configure()
    connections["default"].settings_dict["AUTOCOMMIT"] = False
    assert messages_of(check_commits) == [
        (
            "tasks_app.E006",
            "AUTOCOMMIT of the database 'default' is off: writes of workers and clean-ups "
            "would not be committed.",
            "Leave it on, and open transactions by transaction.atomic().",
        )
    ]


@pytest.fixture
def narrow() -> Iterator[None]:
    """Switch the site's database to SQL_ASCII, if it is PostgreSQL."""
    site = connections["default"]
    if site.vendor == "sqlite":
        yield
        return
    with psycopg.connect(database_url(), autocommit=True) as session:
        session.execute(
            "CREATE DATABASE narrow ENCODING 'SQL_ASCII' TEMPLATE template0"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        wrapper = connections["default"] = site.copy()
        wrapper.settings_dict["NAME"] = "narrow"
        yield
        wrapper.close()
        connections["default"] = site
        session.execute("DROP DATABASE narrow")


@pytest.mark.django_db
def test_encoding_that_lacks_characters_is_a_warning(narrow: None) -> None:
    """Only reported if the command checks databases."""
    assert messages_of(check_encoding) == []
    found = [
        (message.id, message.msg, message.hint)
        for message in check_encoding(None, databases=["default"])
    ]
    if connections["default"].vendor == "sqlite":
        assert found == []
        return
    assert found == [
        (
            "tasks_app.W005",
            "The encoding of the database 'default' is SQL_ASCII, so it refuses some texts "
            "of tasks: their progress and log get escapes, and results fail.",
            "Dump it, create one by `createdb --encoding=UTF8 --template=template0`, and restore "
            "the dump into that.",
        )
    ]


@pytest.mark.once
@pytest.mark.slow
def test_psycopg2_is_an_error(tmp_path: Path) -> None:
    """Django uses it if psycopg is not installed."""
    hide = "import sys, runpy; sys.modules['psycopg'] = None; sys.argv = ['manage.py', 'check',"
    hide += " '--tag', 'compatibility']; runpy.run_path('manage.py', run_name='__main__')"
    check = Process(["-c", hide], tmp_path / "log", DATABASE_URL="postgresql://nobody@/none")
    with ended([check]):
        assert check.wait() == 1
    assert "(tasks_app.E007) Django uses psycopg2 for the database 'default'" in check.output
    assert "HINT: Install psycopg[binary] 3.2 or newer." in check.output


def test_sqlite_checks_skip_other_databases(configure: Configure) -> None:
    configure("postgresql")
    assert messages_of(check_sqlite) == []
