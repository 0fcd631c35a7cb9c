"""How long to leave a database alone that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)

from tasks_app.conf import task_settings
from tasks_app.schemas import escaped
from tasks_app.store.ledger import sqlstate
from tasks_app.worker.run import NEVER

PAUSE, PAUSE_MAX = 0.1, 5.0

#: What Django raises where a database does not answer, has no room, or is not to be written just
#: now. (PostgreSQL calls it an internal error that a server which was demoted takes no writes.)
TROUBLE = (OperationalError, InterfaceError, InternalError)

#: What Django raises where a database refuses what it is given, such as a text that its encoding
#: lacks. Also of the classes above, which are to be caught first.
REFUSED = (DatabaseError, UnicodeError)


#: What SQLite says while another transaction holds its one lock for writing.
LOCKED = "database is locked"

#: What PostgreSQL and SQLite say of a table or a column that is not there.
MISSING_STATES = frozenset({"42P01", "42703"})
MISSING_WORDS = ("no such table", "no such column", "has no column named")


def is_unmigrated(error: Exception) -> bool:
    """Whether the database lacks a table or a column."""
    return sqlstate(error) in MISSING_STATES or any(said in str(error) for said in MISSING_WORDS)


@contextmanager
def missing_is_trouble() -> Iterator[None]:
    """Raise OperationalError for what a migration would add, as SQLite does by itself.

    PostgreSQL calls it a programming error. A worker waits for `migrate` on both.
    """
    try:
        yield
    except ProgrammingError as error:
        if not is_unmigrated(error):
            raise
        raise OperationalError(*error.args) from error.__cause__


def database_fault(error: Exception) -> str:
    """Say what is wrong with a database in trouble, and what to do if that is known."""
    if is_unmigrated(error):
        # PostgreSQL goes on with the statement, over several lines.
        name = str(error).strip().partition("\n")[0]
        return f"The database lacks a table or a column: {name}. Run manage.py migrate"
    return f"The database does not answer: {explained(error)}"


#: What databases say, and what it means where that is not plain.
MEANS = {
    LOCKED: (
        "a transaction holds SQLite's one write lock for long, perhaps that of a task: "
        "progress waits until it ends, and no lease is lost"
    ),
    "lock timeout": (
        "a session holds a table of tasks for long, perhaps a migration, or one that is idle in "
        "a transaction: pg_stat_activity tells which"
    ),
    "deadlock detected": "another session wrote the same tasks in another order; this is done anew",
}


def explained(error: Exception) -> str:
    """Return what a database said, with what it means where that is not plain."""
    said = escaped(str(error).strip())
    meaning = next((meaning for words, meaning in MEANS.items() if words in said), "")
    return f"{said} ({meaning})" if meaning else said


class Trouble:
    """The pause between two tries, in seconds: it doubles with each that fails, up to a maximum."""

    def __init__(self) -> None:
        self.pause = 0.0
        #: By the monotonic clock.
        self.retry_at = 0.0
        #: Since when another transaction has held SQLite's lock, by the same clock.
        self.locked_since = NEVER

    @property
    def started(self) -> bool:
        return self.pause > 0

    def strike(self, moment: float, begun: float | None = None) -> float:
        """Take note that a try failed; return how long to wait until the next.

        A try that waited for a lock, since it had begun, has waited already.
        """
        # Twice in a heartbeat of two seconds and more: once the database answers, leases are to be
        # renewed before anybody takes this worker for lost.
        longest = min(PAUSE_MAX, task_settings().heartbeat_seconds / 2)
        self.pause = min(max(self.pause * 2, PAUSE), longest)
        waited = 0.0 if begun is None else moment - begun
        rest = max(self.pause - waited, PAUSE)
        self.retry_at = moment + rest
        return rest
