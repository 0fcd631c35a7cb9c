"""How long to leave a database alone that does not answer."""

from __future__ import annotations

from django.db import InterfaceError, InternalError, OperationalError, connections

from tasks_app.conf import task_settings

PAUSE, PAUSE_MAX = 0.1, 5.0
#: How long a worker waits in line for a lock before it looks after its hands again.
LOCK_MILLISECONDS = 1000

#: What Django raises where a database does not answer, has no room, or is not to be written just
#: now. (PostgreSQL calls it an internal error that a server which was demoted takes no writes.)
TROUBLE = (OperationalError, InterfaceError, InternalError)


def answer_soon(using: str) -> None:
    """Have a new connection wait for locks for a second at most, whatever the site's own limit is.

    While it waits, a worker enforces no timeout and hears no signal; and it may be one of its own
    tasks that holds the lock.
    """
    connection = connections[using]
    connection.close()
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"PRAGMA busy_timeout = {LOCK_MILLISECONDS}")
        elif connection.vendor == "postgresql" and task_settings().listen:
            # Not behind a pooler, where the next transaction has another session.
            cursor.execute(f"SET lock_timeout = {LOCK_MILLISECONDS}")


def explained(error: Exception) -> str:
    """Return what a database said, with what it means where that is not plain."""
    said = str(error).strip()
    if "database is locked" in said:
        said += (
            " (a transaction holds SQLite's one write lock for long, perhaps that of a task: "
            "progress waits until it ends, and no lease is lost)"
        )
    return said


class Trouble:
    """The pause between two tries, in seconds: it doubles with each that fails, up to a maximum."""

    def __init__(self) -> None:
        self.pause = 0.0
        #: By the monotonic clock.
        self.retry_at = 0.0

    @property
    def started(self) -> bool:
        return self.pause > 0

    def strike(self, moment: float) -> float:
        """Take note that a try failed; return how long to wait until the next."""
        # Twice in a heartbeat at least: once the database answers, leases are to be renewed before
        # anybody takes this worker for lost.
        longest = min(PAUSE_MAX, task_settings().heartbeat_seconds / 2)
        self.pause = min(max(self.pause * 2, PAUSE), longest)
        self.retry_at = moment + self.pause
        return self.pause
