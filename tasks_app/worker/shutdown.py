"""When a worker that was told to stop must do what."""

from __future__ import annotations

from enum import IntEnum

from tasks_app.conf import task_settings
from tasks_app.worker.run import NEVER

#: How long tasks that are told to stop have to clean up before they are released. Half-way, what
#: has not called in is interrupted.
STOP_SECONDS = 1.0
#: How long the release is tried, where the database does not take it.
RELEASE_SECONDS = 5.0


class Exit(IntEnum):
    """What a worker's process ends with."""

    #: In good order: told to stop, drained, or out of allowance.
    DONE = 0
    #: Its SQLite file was replaced or deleted while it was open. (EX_OSFILE)
    REPLACED = 72
    #: The database did not take the release of its tasks; others will rescue them. (EX_IOERR)
    UNRELEASED = 74
    #: Too many of its threads are stuck. It wants to be started again. (EX_TEMPFAIL)
    RECYCLE = 75


class Shutdown:
    """First signal: claim no more, let tasks finish. After the grace: interrupt, then release.

    A second signal skips the waits. Times are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._signals = 0
        self._seen = 0
        self._released = False
        self.interrupt_at = NEVER
        self.release_at = NEVER

    def signal(self) -> None:
        """Count a signal. Safe in a signal handler."""
        self._signals += 1

    @property
    def requested(self) -> bool:
        return self._signals > 0

    @property
    def next_step(self) -> float:
        release_at = self.release_at + (RELEASE_SECONDS if self._released else 0.0)
        return min(self.interrupt_at, release_at)

    def heed(self, moment: float) -> bool:
        """Set the times by the signals that came; return whether the first has come just now."""
        before, self._seen = self._seen, self._signals
        if self._seen > max(before, 1):
            self.interrupt_at = min(self.interrupt_at, moment)
            # Not put off by a third signal, nor by the next look: from here on it gives up in time.
            self.release_at = min(self.release_at, moment)
        elif self._seen > before:
            self.interrupt_at = moment + task_settings().shutdown_grace_seconds
            self.release_at = self.interrupt_at + STOP_SECONDS
        return before == 0 < self._seen

    def interrupts(self, moment: float) -> bool:
        """Whether running tasks must now be told to stop. True once."""
        due = moment >= self.interrupt_at
        if due:
            self.interrupt_at = NEVER
        return due

    def releases(self, moment: float) -> bool:
        """Whether what still runs must now be released."""
        self._released = moment >= self.release_at
        return self._released

    def gives_up(self, moment: float) -> bool:
        """Whether to end with the release not written. Leases run out, and others rescue."""
        return moment >= self.release_at + RELEASE_SECONDS
