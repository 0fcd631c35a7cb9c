"""A worker's database connection, and how it waits for a database that does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
)
from django.db.transaction import TransactionManagementError

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped
from tasks_app.store.database_file import DatabaseFile
from tasks_app.store.ledger import LOCK_MILLISECONDS, sqlstate
from tasks_app.worker.runs import NEVER

logger = SafeLogger("tasks_app.worker")

PAUSE, PAUSE_MAX = 0.1, 5.0

#: Django's exceptions for a database that does not answer, is full, or cannot be written to at the
#: moment. (On PostgreSQL, a write to a demoted server is an internal error.)
TROUBLE = (OperationalError, InterfaceError, InternalError)

#: Django's exceptions for a value that the database refuses, such as a text that its encoding
#: lacks. They include the classes above, so catch those first.
REFUSED = (DatabaseError, UnicodeError)

#: SQLite's message while another transaction holds its write lock.
LOCKED = "database is locked"

#: The reports of PostgreSQL and SQLite about a missing table or column.
MISSING_STATES = frozenset({"42P01", "42703"})
MISSING_WORDS = ("no such table", "no such column", "has no column named")

#: Messages of databases that need an explanation.
MEANS = {
    LOCKED: (
        "a transaction has held SQLite's write lock for a long time, perhaps that of a task: "
        "progress waits until it ends, and no lease is lost"
    ),
    "lock timeout": (
        "a session has locked a table of tasks for a long time, perhaps a migration, or one that "
        "is idle in a transaction: see pg_stat_activity"
    ),
    "deadlock detected": (
        "another session wrote the same tasks in another order; this is tried again"
    ),
}


def is_unmigrated(error: Exception) -> bool:
    """Return whether the database lacks a table or a column."""
    message = str(error)
    return sqlstate(error) in MISSING_STATES or any(words in message for words in MISSING_WORDS)


@contextmanager
def missing_is_trouble() -> Iterator[None]:
    """Raise OperationalError if a table or column is missing, as SQLite does.

    PostgreSQL raises ProgrammingError. A worker waits for `migrate` on both.
    """
    try:
        yield
    except ProgrammingError as error:
        if not is_unmigrated(error):
            raise
        raise OperationalError(*error.args) from error.__cause__


def database_fault(error: Exception) -> str:
    """Describe what is wrong with a database, and the remedy if it is known."""
    if is_unmigrated(error):
        # PostgreSQL quotes the statement on further lines.
        name = str(error).strip().partition("\n")[0]
        return f"The database lacks a table or a column: {name}. Run manage.py migrate"
    return f"The database does not answer: {explained(error)}"


def explained(error: Exception) -> str:
    """Return a database's message, with an explanation if it needs one."""
    message = escaped(str(error).strip())
    meaning = next((meaning for words, meaning in MEANS.items() if words in message), "")
    return f"{message} ({meaning})" if meaning else message


class Trouble:
    """The pause between two tries, in seconds. It doubles with each failure, up to a maximum."""

    def __init__(self) -> None:
        self.pause = 0.0
        #: By the monotonic clock.
        self.retry_at = 0.0
        #: Since when another transaction has held SQLite's lock, by the monotonic clock.
        self.locked_since = NEVER

    @property
    def started(self) -> bool:
        return self.pause > 0

    def strike(self, now: float, begun: float | None = None) -> float:
        """Note that a try failed; return how long to wait until the next.

        `begun` is when the try began. The time that it waited for a lock counts as waited.
        """
        # At least two tries in a heartbeat of two seconds or more: once the database answers,
        # leases must be renewed before another worker rescues these tasks.
        longest = min(PAUSE_MAX, task_settings().heartbeat_seconds / 2)
        self.pause = min(max(self.pause * 2, PAUSE), longest)
        waited = 0.0 if begun is None else now - begun
        rest = max(self.pause - waited, PAUSE)
        self.retry_at = now + rest
        return rest


class Connection:
    """Django's connection of the coordinator's thread, opened as a worker needs it."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.trouble = Trouble()
        self._file = DatabaseFile(connections[using])

    def open(self) -> None:
        """Open a new connection.

        Raises what Django raises if the database does not answer, and DatabaseReplaced if its file
        is not the same as before.

        SQLite waits for its lock no longer than `begin` does on PostgreSQL, whatever the site's
        limit is; see `begin` for the reason. On PostgreSQL the connection does not come from a
        pool, because there the worker could wait for its own threads for longer than a lease. It
        uses READ COMMITTED, whatever the site's isolation level is: the worker locks row by row,
        and an earlier write of another session is no error.
        """
        connection = connections[self.using]
        connection.close()
        if connection.vendor == "sqlite":
            # Python would keep the last statements with all their parameters, such as results.
            options = {**connection.settings_dict["OPTIONS"], "cached_statements": 0}
            connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        if connection.settings_dict["OPTIONS"].get("pool"):
            connection = connections[self.using] = connection.copy()
            del connection.settings_dict["OPTIONS"]["pool"]
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute(f"PRAGMA busy_timeout = {LOCK_MILLISECONDS}")
            elif connection.vendor == "postgresql":
                from psycopg import IsolationLevel  # Only installed with PostgreSQL.

                connection.connection.isolation_level = IsolationLevel.READ_COMMITTED
        self._file.opened(connection)

    def refuse_transaction(self) -> None:
        """Raise TransactionManagementError if the caller is inside a transaction.

        The worker's threads would not see its uncommitted rows, and a worker closes and opens the
        connection as it needs it.
        """
        if connections[self.using].in_atomic_block:
            raise TransactionManagementError(
                "A worker cannot run inside a transaction: its threads would not see uncommitted "
                "rows. Call it outside of transaction.atomic(); in a test use "
                "TransactionTestCase, or pytest.mark.django_db(transaction=True)."
            )

    def reopen(self) -> None:
        """Open a new connection if the last one was given up. Raises what `open` raises."""
        if self.trouble.started:
            self.open()

    def works(self) -> None:
        """Note that the database answered."""
        if self.trouble.started:
            logger.info("The database answers again")
            self.trouble = Trouble()

    def wait_out(self, error: Exception, waiting: int, begun: float | None = None) -> None:
        """Close the connection and set the time of the next try.

        `waiting` is the number of outcomes that cannot be written until then. `begun` is when the
        failed try began.
        """
        now = time.monotonic()
        pause = self.trouble.strike(now, begun)
        locked = LOCKED in str(error)
        self.trouble.locked_since = min(self.trouble.locked_since, now) if locked else NEVER
        logger.warning(
            "%s; %d outcomes wait; next try in %g s",
            database_fault(error),
            waiting,
            pause,
        )
        connections[self.using].close()
        self._file.closed()

    def verify(self) -> None:
        """Raise DatabaseReplaced if other processes would now open another file."""
        self._file.verify()
