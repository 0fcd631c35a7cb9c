"""System checks of a site's settings and tasks, for `manage.py check`."""

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

from tasks_app.api.auth import authenticator
from tasks_app.conf import PREFIX, TaskSettings, declared
from tasks_app.exceptions import InvalidTask, by_field
from tasks_app.live.channels import TaskChannelManager
from tasks_app.live.origins import allowed_origins
from tasks_app.live.storage import TaskEventStorage
from tasks_app.service import StartOptions, TaskService
from tasks_app.store.ledger import alias
from tasks_app.tasks import registry
from tasks_app.tasks.declaration import check_fields
from tasks_app.tasks.forms import form_for

#: The path that django-cors-headers has sites put into MIDDLEWARE.
CORS_MIDDLEWARE = "corsheaders.middleware.CorsMiddleware"

Apps = Sequence[AppConfig] | None


@register(Tags.compatibility)
def check_settings(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that the TASK_ settings are valid, alone and together."""
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
                hint="One late heartbeat would take running tasks from a live worker. "
                "Make the lease three heartbeats long.",
                id="tasks_app.E002",
            )
        )
    if fault := _not_a(TaskService, "TASK_SERVICE", conf.service):
        found.append(
            Error(
                f"{fault}.",
                hint="Name a subclass of tasks_app.TaskService by its dotted path.",
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
    """Check that task classes can be imported, have an `execute`, and declare valid options.

    These are all warnings: a fault in one app's tasks must not stop the tasks of other apps. Nor
    must it stop the migrations of a site that only starts the tasks by name.
    """
    found: list[CheckMessage] = [
        checks.Warning(
            f"{module} cannot be imported: {why}",
            hint="None of its tasks can run. If this process only starts them by name and lacks "
            "what they need, silence this check there.",
            id="tasks_app.W020",
        )
        for module, why in registry.problems().items()
    ]
    found += [
        checks.Warning(
            f"{task.name()} has no execute(), and no subclass.",
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
                f"Tasks of {task.name()} cannot be started, and pages hide their values. "
                f"Change the annotation, or install what its type needs."
            )
            found.append(checks.Warning(str(error), hint=hint, id="tasks_app.W010"))
            continue
        try:
            check_fields(task.__name__, task.execute, task.params_model())
        except InvalidTask as error:
            hint = f"Every task of {task.name()} would fail when it runs."
            found.append(checks.Warning(str(error), hint=hint, id="tasks_app.W023"))
    return found


@register(Tags.urls)
def check_urls(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that pages can request streams and statuses, and that tasks have pages."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    try:
        reverse("tasks_app:streams")
    except NoReverseMatch:
        return [
            checks.Warning(
                "The site's URLs do not include tasks_app.urls: progress bars do not update, and "
                "tasks have no pages.",
                hint='Add path("tasks/", include("tasks_app.urls")) to the urlpatterns of '
                f"{settings.ROOT_URLCONF}.",
                id="tasks_app.W011",
            )
        ]
    return []


@register(Tags.security)
def check_streams(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that streams check permissions, resume from stored facts, and are served by ASGI."""
    found: list[CheckMessage] = []
    name = "EVENTSTREAM_CHANNELMANAGER_CLASS"
    if fault := _not_a(TaskChannelManager, name, getattr(settings, name, None)):
        found.append(
            Error(
                f"{fault}, so nothing checks who may see which task.",
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
                hint="Serve the site by uvicorn or daphne, and wrap its application in "
                "tasks_app.with_task_streams.",
                id="tasks_app.W002",
            )
        )
    return found


@register(Tags.security)
def check_origins(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that only one setting allows origins to read streams, and that browsers accept it."""
    origins = set(allowed_origins())
    found: list[CheckMessage] = []
    if origins and CORS_MIDDLEWARE in settings.MIDDLEWARE:
        found.append(
            checks.Warning(
                "EVENTSTREAM_ALLOW_ORIGIN and django-cors-headers both allow origins to read "
                "streams: an origin needs only one of them.",
                hint="Remove the settings EVENTSTREAM_ALLOW_…, and name the origins in "
                "CORS_ALLOWED_ORIGINS.",
                id="tasks_app.W012",
            )
        )
    if "*" in origins and getattr(settings, "EVENTSTREAM_ALLOW_CREDENTIALS", False):
        found.append(
            checks.Warning(
                "EVENTSTREAM_ALLOW_CREDENTIALS is on and any origin is allowed, which browsers "
                "refuse.",
                hint="Name the origins in EVENTSTREAM_ALLOW_ORIGINS.",
                id="tasks_app.W013",
            )
        )
    return found


@register(Tags.compatibility)
def check_commits(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that the end of a transaction commits what was written in it."""
    if connections[alias()].settings_dict["AUTOCOMMIT"]:
        return []
    return [
        Error(
            f"AUTOCOMMIT of the database {alias()!r} is off: writes of workers and clean-ups would "
            f"not be committed.",
            hint="Leave it on, and open transactions by transaction.atomic().",
            id="tasks_app.E006",
        )
    ]


@register(Tags.compatibility)
def check_driver(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that PostgreSQL is used through psycopg 3, which can wait for notifications."""
    connection = connections[alias()]
    driver: Any = getattr(connection, "Database", None)
    if connection.vendor != "postgresql" or driver.__name__ != "psycopg2":
        return []
    return [
        Error(
            f"Django uses psycopg2 for the database {alias()!r}; workers and streams need "
            f"psycopg 3.",
            hint="Install psycopg[binary] 3.2 or newer. Django prefers it if both are installed.",
            id="tasks_app.E007",
        )
    ]


@register(Tags.compatibility)
def check_sqlite(app_configs: Apps, **_kwargs: Any) -> Iterable[CheckMessage]:
    """Check that SQLite lets readers work beside one writer, and lets writers queue."""
    connection = connections[alias()]
    if connection.vendor != "sqlite":
        return []
    name, options = connection.settings_dict["NAME"], connection.settings_dict["OPTIONS"]
    found: list[CheckMessage] = []
    if str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
        found.append(
            checks.Warning(
                "SQLite transactions are deferred: two that read and then write fail with "
                '"database is locked", even with a long timeout.',
                hint='Set "transaction_mode": "IMMEDIATE" in the OPTIONS of the database.',
                id="tasks_app.W003",
            )
        )
    if not _writes_ahead(str(name), str(options.get("init_command", ""))):
        found.append(
            checks.Warning(
                "SQLite is not in WAL mode: a page that reads blocks the worker's writes.",
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
    """Check that PostgreSQL can store every text. Runs only if asked to query the database."""
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
            f"The encoding of the database {alias()!r} is {encoding}, so it refuses some texts of "
            f"tasks: their progress and log get escapes, and results fail.",
            hint="Dump it, create one by `createdb --encoding=UTF8 --template=template0`, and "
            "restore the dump into that.",
            id="tasks_app.W005",
        )
    ]


def _writes_ahead(name: str, init_command: str) -> bool:
    """Return whether a database is in WAL mode, by its configuration or else by its file."""
    command = init_command.lower()
    if "journal_mode" in command:
        return "wal" in command
    # Ask SQLite. Opening and closing the file to read its header would drop the locks of every
    # connection in this process: see DatabaseFile.
    try:
        with closing(
            sqlite3.connect(f"{Path(name).absolute().as_uri()}?mode=rw", uri=True)
        ) as file:
            return bool(file.execute("PRAGMA journal_mode").fetchone()[0] == "wal")
    except sqlite3.Error:
        return False


def _not_a(wanted: type, setting: str, path: str | None) -> str:
    """Return what is wrong with a setting that names a class; empty if it is a `wanted`."""
    if not path:
        return f"{setting} is not set"
    try:
        found = import_string(path)
    except ImportError as error:
        return f"{setting} cannot be imported ({error})"
    if not (isinstance(found, type) and issubclass(found, wanted)):
        return f"{setting} is {path}, which is not a {wanted.__name__}"
    return ""


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
