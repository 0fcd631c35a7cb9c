"""PostgreSQL: LISTEN, and NOTIFY with each commit."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tasks_app.changes.listening import Listening

#: Notices stay within one database. Sites that share one wake each other, and find nothing.
CHANNEL = "tasks_app"
#: Unless the site sets others: a line that a network forgot is found out within a minute.
OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


class PostgreSQLChanges(Listening):
    """Hears what `notify` tells, on a connection of its own."""

    service = "LISTEN on PostgreSQL"
    safety_seconds = 5.0

    def __init__(self, using: str) -> None:
        self._using = using
        super().__init__()

    def open(self) -> PostgreSQLLine:
        return PostgreSQLLine(connections[self._using])


class PostgreSQLLine:
    """A connection that listens, made as Django makes its own, but outside of any pool."""

    def __init__(self, django: Any) -> None:
        options = OPTIONS | django.get_connection_params() | {"autocommit": True}
        self._connection: Any = django.Database.connect(**options)
        try:
            self._connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return int(self._connection.fileno())

    def take(self) -> bool:
        server = self._connection.pgconn
        server.consume_input()
        told = False
        while server.notifies():
            told = True
        if self._connection.closed:
            raise ConnectionError("the connection is lost")
        return told

    def close(self) -> None:
        self._connection.close()


def notify(connection: BaseDatabaseWrapper) -> None:
    """Tell those who listen when the running transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def told() -> None:
    """Stand among a transaction's hooks for the notice that it holds."""
