"""The one clock that every process agrees on, and the moments that a site can show."""

from datetime import datetime
from typing import cast

from django.conf import settings
from django.db import connections
from django.utils import timezone
from django.utils.dateparse import parse_datetime

#: Past these, not every zone of the world can show every moment.
FIRST_YEAR, LAST_YEAR = 1900, 9998


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


def within_the_calendar(moment: datetime) -> datetime:
    """Return a moment that every zone can show. Raises ValueError for another."""
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"must be from the year {FIRST_YEAR} to {LAST_YEAR}")
    return moment


def moment_of(text: str) -> datetime | None:
    """Read a moment as DateTimeFields take it: of the site's zone, where it names none.

    None for anything else, also for a moment that not every zone can show.
    """
    try:
        moment = parse_datetime(text)
        if moment is None:
            return None
        within_the_calendar(moment)
    except ValueError:
        return None
    if timezone.is_aware(moment) is settings.USE_TZ:
        return moment
    return timezone.make_aware(moment) if settings.USE_TZ else timezone.make_naive(moment)
