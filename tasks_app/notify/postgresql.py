"""Change signals of PostgreSQL: NOTIFY with each commit, received by LISTEN."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tasks_app.notify.listening import Listening

#: The channel of the notices. Sites in one database share it: they wake each other for nothing.
CHANNEL = "tasks_app"
#: Defaults for what the site does not set. A dead connection is detected within a minute.
OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


class PostgreSQLChanges(Listening):
    """Receives what `notify` sends, on a separate connection."""

    service = "LISTEN on PostgreSQL"
    safety_seconds = 5.0

    def __init__(self, using: str) -> None:
        self._using = using
        super().__init__()

    def open(self) -> PostgreSQLLine:
        return PostgreSQLLine(connections[self._using])


class PostgreSQLLine:
    """A connection for LISTEN, opened with Django's parameters, but never from a pool."""

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
        noticed = False
        while server.notifies():
            noticed = True
        if self._connection.closed:
            raise ConnectionError("the connection is lost")
        return noticed

    def close(self) -> None:
        self._connection.close()


def notify(connection: BaseDatabaseWrapper) -> None:
    """Send a notice to the listening processes when the current transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def notified() -> None:
    """Do nothing. As a hook of a transaction, it marks that the transaction holds a NOTIFY."""
