"""What `manage.py check` says of a site's settings."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string
from pydantic import ValidationError

from tasks_app import registry
from tasks_app.api.auth import authenticator
from tasks_app.conf import PREFIX, TaskSettings, declared
from tasks_app.declaration import check_fields
from tasks_app.exceptions import InvalidTask, by_field
from tasks_app.forms import form_for
from tasks_app.ledger import alias
from tasks_app.service import StartOptions, TaskService
from tasks_app.streaming.channels import TaskChannelManager
from tasks_app.streaming.origins import allowed_origins
from tasks_app.streaming.storage import TaskEventStorage

#: What django-cors-headers tells sites to put into MIDDLEWARE.
CORS_MIDDLEWARE = "corsheaders.middleware.CorsMiddleware"

Apps = Sequence[AppConfig] | None


@register(Tags.compatibility)
def check_settings(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Each TASK_ setting is sound, alone and beside the others."""
    try:
        conf = TaskSettings.model_validate(declared())
    except ValidationError as error:
        return [
            Error(
                f"{PREFIX}{str(fault['loc'][0]).upper()} is {fault['input']!r}. {fault['msg']}.",
                hint="See the settings in docs/task_system_usage.md.",
                id="tasks_app.E001",
            )
            for fault in error.errors()
        ]
    found: list[CheckMessage] = []
    if conf.lease_seconds < 2 * conf.heartbeat_seconds:
        found.append(
            Error(
                f"TASK_LEASE_SECONDS ({conf.lease_seconds:g}) is shorter than two heartbeats "
                f"(TASK_HEARTBEAT_SECONDS is {conf.heartbeat_seconds:g}).",
                hint="One late heartbeat would take running tasks from a worker that lives. "
                "Make the lease three heartbeats long.",
                id="tasks_app.E002",
            )
        )
    if fault := _not_a(TaskService, "TASK_SERVICE", conf.service):
        found.append(
            Error(
                f"{fault}.",
                hint="Name a subclass of tasks_app.service.TaskService by its dotted path.",
                id="tasks_app.E003",
            )
        )
    for path in conf.api_auth:
        try:
            authenticator(path)
        except ImproperlyConfigured as error:
            found.append(
                Error(
                    str(error),
                    hint="Name authenticators of django-ninja by their dotted paths, such as "
                    "tasks_app.api.SessionAuth.",
                    id="tasks_app.E005",
                )
            )
    return found


@register(Tags.compatibility)
def check_tasks(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Task classes can be imported, have an `execute`, and say of themselves what makes sense.

    All are warnings: a fault in the tasks of one app must not keep those of others from running,
    nor keep a site from being migrated that only starts them by name.
    """
    found: list[CheckMessage] = [
        checks.Warning(
            f"{module} cannot be imported: {why}",
            hint="None of its tasks can run. If this process only starts them by name, and does "
            "not have what they need, silence this check there.",
            id="tasks_app.W020",
        )
        for module, why in registry.problems().items()
    ]
    found += [
        checks.Warning(
            f"{task.name()} has no execute(), and no class derives from it.",
            hint="Give it a method execute(self, progress, …).",
            id="tasks_app.W021",
        )
        for task in registry.unfinished()
    ]
    for task in registry.tasks():
        try:
            StartOptions.of(task, {})
        except ValidationError as error:
            found += [
                checks.Warning(
                    f"{task.name()}.{field}: {fault}.",
                    hint="Its tasks cannot be started unless the start says otherwise.",
                    id="tasks_app.W022",
                )
                for field, fault in by_field(error.errors()).items()
            ]
        try:
            form_for(task)
            task.result_type()
        except InvalidTask as error:
            hint = (
                f"Tasks of {task.name()} cannot be started, and pages mask what they hold. "
                f"Change the annotation, or install what its type needs."
            )
            found.append(checks.Warning(str(error), hint=hint, id="tasks_app.W010"))
            continue
        try:
            check_fields(task.__name__, task.execute, task.params_model())
        except InvalidTask as error:
            hint = f"Each task of {task.name()} would fail when it is run."
            found.append(checks.Warning(str(error), hint=hint, id="tasks_app.W023"))
    return found


@register(Tags.urls)
def check_urls(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Pages can ask for streams and statuses, and a task has a page of its own."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    try:
        reverse("tasks_app:streams")
    except NoReverseMatch:
        return [
            checks.Warning(
                "The site's URLs do not include tasks_app.urls: bars stand still as they were "
                "rendered, and tasks have no pages.",
                hint='Add path("tasks/", include("tasks_app.urls")) to the urlpatterns of '
                f"{settings.ROOT_URLCONF}.",
                id="tasks_app.W011",
            )
        ]
    return []


@register(Tags.security)
def check_streams(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Streams ask who may read them, resume from the facts, and are served by ASGI."""
    found: list[CheckMessage] = []
    name = "EVENTSTREAM_CHANNELMANAGER_CLASS"
    if fault := _not_a(TaskChannelManager, name, getattr(settings, name, None)):
        found.append(
            Error(
                f"{fault}, so nobody asks who may see which task.",
                hint=f'Set it to "{_path(TaskChannelManager)}", or to a subclass of it.',
                id="tasks_app.E004",
            )
        )
    name = "EVENTSTREAM_STORAGE_CLASS"
    if fault := _not_a(TaskEventStorage, name, getattr(settings, name, None)):
        found.append(
            checks.Warning(
                f"{fault}, so django-eventstream's own views cannot resume the streams of tasks.",
                hint=f'Set it to "{_path(TaskEventStorage)}".',
                id="tasks_app.W001",
            )
        )
    if not getattr(settings, "ASGI_APPLICATION", None):
        found.append(
            checks.Warning(
                "ASGI_APPLICATION is not set: under WSGI there are no streams, and pages poll.",
                hint="Serve the site by uvicorn or daphne; wrap its application in "
                "tasks_app.routing.with_task_streams.",
                id="tasks_app.W002",
            )
        )
    return found


@register(Tags.security)
def check_origins(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """One place decides which other origins read streams, and browsers accept what it says."""
    origins = set(allowed_origins())
    found: list[CheckMessage] = []
    if origins and CORS_MIDDLEWARE in settings.MIDDLEWARE:
        found.append(
            checks.Warning(
                "EVENTSTREAM_ALLOW_ORIGIN and django-cors-headers both say which origins may read "
                "streams: whoever either allows may.",
                hint="Remove the settings EVENTSTREAM_ALLOW_…, and name the origins in "
                "CORS_ALLOWED_ORIGINS.",
                id="tasks_app.W012",
            )
        )
    if "*" in origins and getattr(settings, "EVENTSTREAM_ALLOW_CREDENTIALS", False):
        found.append(
            checks.Warning(
                "EVENTSTREAM_ALLOW_CREDENTIALS is on and any origin is allowed: browsers refuse "
                "that.",
                hint="Name the origins in EVENTSTREAM_ALLOW_ORIGINS.",
                id="tasks_app.W013",
            )
        )
    return found


@register(Tags.compatibility)
def check_commits(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """What is written in a transaction is committed with it."""
    if connections[alias()].settings_dict["AUTOCOMMIT"]:
        return []
    return [
        Error(
            f"AUTOCOMMIT of the database {alias()!r} is off: nothing that a worker or a clean-up "
            f"writes would be committed.",
            hint="Leave it on, and open transactions by transaction.atomic().",
            id="tasks_app.E006",
        )
    ]


@register(Tags.compatibility)
def check_driver(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """PostgreSQL is spoken to by psycopg 3, which can wait for notices."""
    connection = connections[alias()]
    driver: Any = getattr(connection, "Database", None)
    if connection.vendor != "postgresql" or driver.__name__ != "psycopg2":
        return []
    return [
        Error(
            f"Django uses psycopg2 for the database {alias()!r}; workers and streams need "
            f"psycopg 3.",
            hint="Install psycopg[binary], version 3.2 or newer. Django uses it where both are "
            "installed.",
            id="tasks_app.E007",
        )
    ]


@register(Tags.compatibility)
def check_sqlite(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """SQLite lets readers pass beside one writer, and lets writers wait in line."""
    connection = connections[alias()]
    if connection.vendor != "sqlite":
        return []
    name, options = connection.settings_dict["NAME"], connection.settings_dict["OPTIONS"]
    found: list[CheckMessage] = []
    if str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
        found.append(
            checks.Warning(
                "SQLite transactions are deferred: two that read and then write fail with "
                '"database is locked", whatever the timeout.',
                hint='Set "transaction_mode": "IMMEDIATE" in the OPTIONS of the database.',
                id="tasks_app.W003",
            )
        )
    if not _writes_ahead(str(name), str(options.get("init_command", ""))):
        found.append(
            checks.Warning(
                "SQLite is not in WAL mode: a page that reads stops the worker from writing.",
                hint='Set "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = '
                'NORMAL;" in the OPTIONS of the database.',
                id="tasks_app.W004",
            )
        )
    return found


@register(Tags.database)
def check_encoding(
    app_configs: Apps, databases: Collection[str] | None = None, **_kwargs: Any
) -> Iterable[CheckMessage]:
    """PostgreSQL stores every text that tasks write. Asks the database, so only if told to."""
    connection = connections[alias()]
    if connection.vendor != "postgresql" or alias() not in (databases or ()):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_encoding")
        encoding = cursor.fetchone()[0]
    if encoding == "UTF8":
        return []
    return [
        checks.Warning(
            f"The encoding of the database {alias()!r} is {encoding}, so it refuses texts that "
            f"tasks write: their progress and log come with escapes, and results fail.",
            hint="Dump it, create one by `createdb --encoding=UTF8 --template=template0`, and "
            "restore the dump into that.",
            id="tasks_app.W005",
        )
    ]


def _writes_ahead(name: str, init_command: str) -> bool:
    """Whether a database is in WAL mode: as it is configured, else as its file says."""
    command = init_command.lower()
    if "journal_mode" in command:
        return "wal" in command
    # Asked of SQLite. To read the header and close the file would drop the locks of every
    # connection that this process has open: see DatabaseFile.
    try:
        with closing(
            sqlite3.connect(f"{Path(name).absolute().as_uri()}?mode=rw", uri=True)
        ) as file:
            return bool(file.execute("PRAGMA journal_mode").fetchone()[0] == "wal")
    except sqlite3.Error:
        return False


def _not_a(wanted: type, setting: str, path: str | None) -> str:
    """Say what is wrong with a setting that names a class; nothing if it is of the wanted kind."""
    if not path:
        return f"{setting} is not set"
    try:
        found = import_string(path)
    except ImportError as error:
        return f"{setting} cannot be imported ({error})"
    if not (isinstance(found, type) and issubclass(found, wanted)):
        return f"{setting} is {path}, no {wanted.__name__}"
    return ""


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
