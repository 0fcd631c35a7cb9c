"""Change signals: has anyone committed since the last look?

The worker uses them to start new tasks without delay, and the relay to send new events. If the
database can signal commits, an idle process does almost nothing. Otherwise it looks on a timer.
"""

from __future__ import annotations

import os

from django.conf import settings
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from tasks_app.conf import task_settings
from tasks_app.notify import postgresql, redis
from tasks_app.notify.sqlite import SQLiteChanges
from tasks_app.notify.timer import Changes

__all__ = ["Changes", "announce", "watch"]


def watch(using: str) -> Changes:
    """Return the best available change signal for this database. Close it when done."""
    connection = connections[using]
    if _uses_redis():
        return redis.RedisChanges()
    if _uses_listen(connection):
        return postgresql.PostgreSQLChanges(using)
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite" and os.path.isfile(name):
        return SQLiteChanges(os.fspath(name))
    return Changes()


def announce(using: str) -> None:
    """Signal the watching processes once the current transaction commits.

    Sends one signal however often it is called in a transaction, and none for what is rolled back,
    also to a savepoint. Does nothing if the database itself signals commits, as SQLite does.
    """
    connection = connections[using]
    if _uses_redis():
        after_commit = redis.publish
    elif _uses_listen(connection):
        after_commit = postgresql.notified
    else:
        return
    # A rollback to a savepoint drops both: Django the hooks set after it, PostgreSQL the NOTIFY. So
    # the NOTIFY is pending exactly if the hook is.
    if any(after_commit in hook for hook in connection.run_on_commit):
        return
    if after_commit is postgresql.notified:
        postgresql.notify(connection)
    transaction.on_commit(after_commit, using=using)


def _uses_redis() -> bool:
    # The same test as in django-eventstream.
    return hasattr(settings, "EVENTSTREAM_REDIS")


def _uses_listen(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "postgresql" and task_settings().listen
