"""A worker's one connection to the database, and how it waits for one that does not answer."""

from __future__ import annotations

import time

from django.db import connections
from django.db.transaction import TransactionManagementError

from tasks_app.logs import SafeLogger
from tasks_app.store.database_file import DatabaseFile
from tasks_app.store.ledger import LOCK_MILLISECONDS
from tasks_app.worker.run import NEVER
from tasks_app.worker.trouble import LOCKED, Trouble, database_fault

logger = SafeLogger("tasks_app.worker")


class Connection:
    """Django's connection of the coordinator's thread, opened as a worker needs it."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.trouble = Trouble()
        self._file = DatabaseFile(connections[using])

    def open(self) -> None:
        """Open a new connection.

        Raises what Django raises if the database does not answer, and DatabaseReplaced if its file
        is another one than before.

        SQLite waits for its lock no longer than `begin` lets others, whatever the site's own limit
        is: see there. On PostgreSQL it is none of a pool's, where the worker would stand in line
        behind its own hands for longer than a lease lasts; and reads what is committed, whatever
        the site's isolation: it locks row by row, and that somebody else wrote one meanwhile is no
        error.
        """
        connection = connections[self.using]
        connection.close()
        if connection.vendor == "sqlite":
            # Python keeps the last statements with all that was bound to them, such as results.
            options = {**connection.settings_dict["OPTIONS"], "cached_statements": 0}
            connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        if connection.settings_dict["OPTIONS"].get("pool"):
            connection = connections[self.using] = connection.copy()
            del connection.settings_dict["OPTIONS"]["pool"]
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute(f"PRAGMA busy_timeout = {LOCK_MILLISECONDS}")
            elif connection.vendor == "postgresql":
                from psycopg import IsolationLevel  # Installed where it is used.

                connection.connection.isolation_level = IsolationLevel.READ_COMMITTED
        self._file.opened(connection)

    def refuse_transaction(self) -> None:
        """Raise TransactionManagementError if the caller is inside a transaction.

        What it wrote is not committed, so no thread would see it; and a worker closes and opens
        the connection as it needs it.
        """
        if connections[self.using].in_atomic_block:
            raise TransactionManagementError(
                "A worker cannot run inside of a transaction: its threads would not see what is "
                "not committed. Call it outside of transaction.atomic(); in a test use "
                "TransactionTestCase, or pytest.mark.django_db(transaction=True)."
            )

    def reopen(self) -> None:
        """Open a new connection if the last one was given up. Raises as `open` does."""
        if self.trouble.started:
            self.open()

    def works(self) -> None:
        """Take note that the database answered."""
        if self.trouble.started:
            logger.info("The database answers again")
            self.trouble = Trouble()

    def wait_out(self, error: Exception, waiting: int, begun: float | None = None) -> None:
        """Give the connection up and leave the database alone for a while.

        `waiting` is how many outcomes cannot be written meanwhile; `begun`, when the try began
        that failed.
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
        """Raise DatabaseReplaced if others who open the database now would get another file."""
        self._file.verify()
