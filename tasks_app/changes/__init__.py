"""Has anybody committed since I last looked?

The worker asks so that it starts new tasks at once, the relay so that it sends what is new. Where
something can tell, an idle process costs next to nothing; elsewhere it looks on a timer.
"""

from __future__ import annotations

import os

from django.conf import settings
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from tasks_app.changes import postgresql, redis
from tasks_app.changes.sqlite import SQLiteChanges
from tasks_app.changes.timer import Changes
from tasks_app.conf import task_settings

__all__ = ["Changes", "announce", "watch"]


def watch(using: str) -> Changes:
    """Return what best tells of commits to this database. Close it when done."""
    connection = connections[using]
    if _is_told_by_redis():
        return redis.RedisChanges()
    if _is_told_by_postgresql(connection):
        return postgresql.PostgreSQLChanges(using)
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite" and os.path.isfile(name):
        return SQLiteChanges(os.fspath(name))
    return Changes()


def announce(using: str) -> None:
    """Have those who watch learn that the running transaction brings something, if it commits.

    Tells once, however often it is called within a transaction, and nothing of what is rolled
    back, be it to a savepoint. Where the database itself tells, as SQLite does, this does nothing.
    """
    connection = connections[using]
    if _is_told_by_redis():
        after_commit = redis.publish
    elif _is_told_by_postgresql(connection):
        after_commit = postgresql.told
    else:
        return
    # Django forgets a hook with the savepoint that it was set in, PostgreSQL a notice likewise. So
    # where the hook stands, the notice does.
    if any(after_commit in hook for hook in connection.run_on_commit):
        return
    if after_commit is postgresql.told:
        postgresql.notify(connection)
    transaction.on_commit(after_commit, using=using)


def _is_told_by_redis() -> bool:
    # As django-eventstream asks it.
    return hasattr(settings, "EVENTSTREAM_REDIS")


def _is_told_by_postgresql(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "postgresql" and task_settings().listen
