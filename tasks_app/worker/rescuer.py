"""When one may take another worker for lost: not while the database kept everybody from writing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import datetime

from django.db import transaction

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.models import Worker
from tasks_app.store import lifecycle
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.worker.housekeeping import rescue
from tasks_app.worker.trouble import TROUBLE, explained, missing_is_trouble

logger = SafeLogger("tasks_app.cleanup")

#: For so many heartbeats the database took writes before anybody is judged: who lives had several
#: tries to renew, also where others were quicker to SQLite's one lock.
CLEAR_BEATS = 2


class Rescuer:
    """Rescues at each heartbeat of a worker that could itself write for the length of two.

    Leases also run out where the database takes no writes for longer than a lease: its server is
    down, or a long transaction holds SQLite's lock. No worker is lost then, and whoever writes
    first afterwards must not judge the others, but leave them time to renew. Nor is anybody lost
    because the database's clock was stepped forward, or its machine slept: what was leased by the
    old time is judged a whole lease later.
    """

    def __init__(self, moment: float) -> None:
        self._beat_at = self._clear_since = moment
        #: The database's time at the last beat.
        self._clock: datetime | None = None
        #: Some leases have run out, and it is too soon to tell whether their workers are lost.
        self.waits = False

    def beat(self, moment: float) -> None:
        """Rescue, if it is safe, just after a heartbeat was written. Trouble is logged."""
        try:
            with missing_is_trouble():
                self._beat(moment)
        except TROUBLE as error:
            logger.warning("Lost tasks could not be taken back: %s", explained(error))

    def _beat(self, moment: float) -> None:
        heartbeat = task_settings().heartbeat_seconds
        # Less than half a heartbeat late harms nobody: a lease is two heartbeats long at least.
        if moment - self._beat_at > 1.5 * heartbeat:
            self._clear_since = max(moment, self._clear_since)
        now = database_now(alias())
        if self._clock is not None:
            stepped = (now - self._clock).total_seconds() - (moment - self._beat_at)
            if stepped > 0.5 * heartbeat:
                self._clear_since = moment + task_settings().lease_seconds
        self._beat_at, self._clock = moment, now
        if moment - self._clear_since > (CLEAR_BEATS - 0.1) * heartbeat:
            # As of the moment looked at: by the time it may write, the clock may have been stepped.
            rescue_all(now)
            self.waits = False
        else:
            self.waits = lifecycle.overdue(now).exists()


def rescue_from_outside(rest: Callable[[float], bool]) -> int:
    """Rescue as a process that comes and goes, such as one that cron starts; return how many.

    Where a lease has run out, it first makes sure for the length of two heartbeats that the
    database takes writes, so that workers which live had time to renew. `rest` sleeps for so many
    seconds and tells whether to go on; where it does not, nobody is rescued. Raises what Django
    raises where the database does not answer.
    """
    if not lifecycle.overdue(database_now(alias())).exists():
        return 0
    heartbeat = task_settings().heartbeat_seconds
    logger.info("A lease has run out; its worker has %g s to renew it", CLEAR_BEATS * heartbeat)
    clear_since = tried_at = time.monotonic()
    while tried_at - clear_since < CLEAR_BEATS * heartbeat:
        if not rest(heartbeat / 4):
            return 0
        _write_nothing()
        moment = time.monotonic()
        if moment - tried_at > heartbeat / 2:
            clear_since = moment
        tried_at = moment
    return rescue_all()


def rescue_all(now: datetime | None = None) -> int:
    """Rescue in batches until nobody is left to be; return how many were."""
    total = 0
    while taken := rescue(now):
        total += taken
    return total


def _write_nothing() -> None:
    """Wait for whatever a write would wait for."""
    with transaction.atomic(using=alias()):
        Worker.objects.filter(pk=uuid.UUID(int=0)).update(pid=0)
