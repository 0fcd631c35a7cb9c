"""The database's clock, which every process agrees on, and times that any site can show."""

from datetime import datetime
from typing import cast

from django.conf import settings
from django.db import connections
from django.utils import timezone
from django.utils.dateparse import parse_datetime

#: Outside these years, some time zones cannot show some times.
FIRST_YEAR, LAST_YEAR = 1900, 9998


def database_now(using: str) -> datetime:
    """Return the database's time, as DateTimeFields return it.

    Leases are compared by this time, so that hosts whose clocks differ agree on when a lease
    expired. SQLite has no clock of its own: its processes share one machine and its clock.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        statement = "statement_timestamp()" if connection.vendor == "postgresql" else "NOW(6)"
        cursor.execute(f"SELECT {statement}")
        return cast(datetime, cursor.fetchone()[0])


def within_the_calendar(time: datetime) -> datetime:
    """Return the time. Raises ValueError if some time zone cannot show it."""
    if not FIRST_YEAR <= time.year <= LAST_YEAR:
        raise ValueError(f"must be from the year {FIRST_YEAR} to {LAST_YEAR}")
    return time


def parse_time(text: str) -> datetime | None:
    """Parse a time as DateTimeFields accept it. Without a zone, it is in the site's time zone.

    Return None if the text is no time, or if some time zone cannot show it.
    """
    try:
        time = parse_datetime(text)
        if time is None:
            return None
        within_the_calendar(time)
    except ValueError:
        return None
    if timezone.is_aware(time) is settings.USE_TZ:
        return time
    return timezone.make_aware(time) if settings.USE_TZ else timezone.make_naive(time)
