"""The one clock that every process agrees on."""

from datetime import datetime
from typing import cast

from django.db import connections
from django.utils import timezone


def database_now(using: str) -> datetime:
    """Return the database's time, as its DateTimeFields do.

    Leases are compared by it, so that hosts whose clocks are minutes apart agree on when one ran
    out. SQLite has no clock of its own: its processes share one machine, and so one clock.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        statement = "statement_timestamp()" if connection.vendor == "postgresql" else "NOW(6)"
        cursor.execute(f"SELECT {statement}")
        return cast(datetime, cursor.fetchone()[0])
