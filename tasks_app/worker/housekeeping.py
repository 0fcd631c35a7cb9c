"""Rescue lost tasks and delete old ones, beside a worker's tasks or as a command.

A `Rescuer` and a `Pruner` belong to each worker. `Cleanup` does both once, for `cleanup_tasks`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from queue import Empty, SimpleQueue
from typing import TypeVar

from django.db import connections, transaction

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, Worker
from tasks_app.schemas import ascii_only, escaped
from tasks_app.store import lifecycle, retention
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias, begin
from tasks_app.worker.trouble import (
    REFUSED,
    TROUBLE,
    Trouble,
    explained,
    is_unmigrated,
    missing_is_trouble,
)

logger = SafeLogger("tasks_app.cleanup")

T = TypeVar("T")

#: The number of lost tasks that are rescued in one transaction.
RESCUE_BATCH = 100
#: The least pause between two batches of a worker's prune: its own writes come first.
BATCH_PAUSE = 0.05
#: A rescue waits until the database has taken writes for this many heartbeats. In that time every
#: live worker has had several tries to renew, even if others got SQLite's lock first.
CLEAR_BEATS = 2
#: The time for which `Cleanup` waits for a database that does not answer.
PATIENCE_SECONDS = 60.0


# Rescue.


def rescue(now: datetime | None = None) -> int:
    """Rescue one batch of tasks of workers that were lost at `now`; return how many.

    If the database refuses the progress text of a task, tasks are rescued one by one, and that task
    without its text.
    """
    lost = _rescue(now)
    for task in lost:
        logger.warning(
            "Task %s (%s) was taken back from worker %s, which stopped responding",
            task.pk,
            task.name,
            task.worker,
            extra={"task_id": str(task.pk)},
        )
    return len(lost)


def _rescue(now: datetime | None) -> list[Task]:
    for limit, silent in ((RESCUE_BATCH, False), (1, False)):
        try:
            with transaction.atomic(using=alias()):
                begin(alias())
                return lifecycle.rescue(limit, now=now, silent=silent)
        except TROUBLE:
            raise
        except REFUSED as error:
            logger.warning(
                "The database refuses what a lost task said: %s", ascii_only(escaped(str(error)))
            )
    with transaction.atomic(using=alias()):
        begin(alias())
        return lifecycle.rescue(1, now=now, silent=True)


def rescue_all(now: datetime | None = None) -> int:
    """Rescue batch after batch until no lost task is left; return how many there were."""
    total = 0
    while rescued := rescue(now):
        total += rescued
    return total


class Rescuer:
    """Rescues at a worker's heartbeats, if the worker itself could write for two heartbeats.

    Leases also expire if the database takes no writes for longer than a lease: its server is down,
    or a long transaction holds SQLite's lock. No worker is lost then, and the first one that writes
    again must leave the others time to renew. A worker is not lost either if the database's clock
    was stepped forward, or its machine slept: leases of before the step get a whole lease more.
    """

    def __init__(self, now: float) -> None:
        self._beat_at = self._clear_since = now
        #: The database's time at the last heartbeat.
        self._clock: datetime | None = None
        #: Some leases have expired, and it is too early to know whether their workers are lost.
        self.waits = False

    def beat(self, now: float) -> None:
        """Rescue if it is safe. Call it just after a heartbeat was written. Logs trouble."""
        try:
            with missing_is_trouble():
                self._beat(now)
        except TROUBLE as error:
            logger.warning("Lost tasks could not be taken back: %s", explained(error))

    def _beat(self, now: float) -> None:
        heartbeat = task_settings().heartbeat_seconds
        # Less than half a heartbeat late is harmless, because a lease is at least two heartbeats.
        if now - self._beat_at > 1.5 * heartbeat:
            self._clear_since = max(now, self._clear_since)
        db_now = database_now(alias())
        if self._clock is not None:
            stepped = (db_now - self._clock).total_seconds() - (now - self._beat_at)
            if stepped > 0.5 * heartbeat:
                self._clear_since = now + task_settings().lease_seconds
        self._beat_at, self._clock = now, db_now
        if now - self._clear_since > (CLEAR_BEATS - 0.1) * heartbeat:
            # Use the time that was checked: the clock may be stepped before the write.
            rescue_all(db_now)
            self.waits = False
        else:
            self.waits = lifecycle.overdue(db_now).exists()


def rescue_from_outside(rest: Callable[[float], bool]) -> int:
    """Rescue from a process that is not a worker, such as one started by cron; return how many.

    If a lease has expired, first make sure for two heartbeats that the database takes writes, so
    that live workers had time to renew. `rest` sleeps for a number of seconds and returns whether
    to continue; if not, no task is rescued. Raises what Django raises if the database does not
    answer.
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
        now = time.monotonic()
        if now - tried_at > heartbeat / 2:
            clear_since = now
        tried_at = now
    return rescue_all()


def _write_nothing() -> None:
    """Wait for every lock that a write would wait for."""
    with transaction.atomic(using=alias()):
        Worker.objects.filter(pk=uuid.UUID(int=0)).update(pid=0)


# Prune.


class Pruner:
    """Prunes every TASK_CLEANUP_INTERVAL_SECONDS, one batch at each step."""

    def __init__(self, now: float) -> None:
        self.next_step = now
        self._prune: retention.Prune | None = None
        self._trouble = Trouble()

    def step(self, now: float) -> None:
        """Delete one batch. Logs errors.

        After trouble with the database it tries again after a pause that grows. After any other
        error the next prune starts at its usual time.
        """
        prune = self._prune
        try:
            if prune is None:
                prune = self._prune = retention.prune(retention.Rule.of_site())
            if next(prune, None) is not None:
                self._trouble = Trouble()
                self.next_step = now + prune.seconds + max(prune.pause, BATCH_PAUSE)
                return
            retention.prune_workers()
        except TROUBLE as error:
            self.next_step = now + self._trouble.strike(now)
            logger.warning("Finished tasks cannot be removed just now: %s", explained(error))
            return
        except Exception:
            # For example, a signal handler of the site fails when rows are deleted.
            logger.exception("Finished tasks could not be removed")
        if prune is not None and prune.removed:
            logger.info("Removed %d finished tasks past their retention", prune.removed)
        self._prune, self._trouble = None, Trouble()
        self.next_step = now + task_settings().cleanup_interval_seconds


# Both, as a command.


@dataclass(slots=True)
class CleanupSummary:
    """The work that a clean-up has done so far."""

    #: Tasks rescued from lost workers.
    taken_back: int = 0
    #: Finished tasks that were deleted, and those that the site's own rows protect.
    removed: int = 0
    kept: int = 0
    #: Rows of workers that are gone: those deleted, and those that never signed off.
    workers_removed: int = 0
    workers_lost: int = 0
    #: False if it was stopped before all was done.
    complete: bool = False


class Cleanup:
    """One clean-up, until it is done or stopped between two steps.

    It leaves the database to others for half of the time. If the database does not answer, it waits
    with a growing pause. After PATIENCE_SECONDS without an answer it raises what Django raises; the
    summary then holds what was done until then.
    """

    def __init__(self, rule: retention.Rule) -> None:
        self.rule = rule
        self.summary = CleanupSummary()
        # A signal handler may call its put(), whatever the thread is doing.
        self._stops: SimpleQueue[None] = SimpleQueue()
        self._stopped = False

    def stop(self) -> None:
        """End after the present step. May be called from a signal handler."""
        self._stopped = True
        self._stops.put(None)

    def run(self, on_batch: Callable[[int], object] = lambda removed: None) -> CleanupSummary:
        """Rescue tasks, prune tasks, prune workers. Call `on_batch` with each batch's size."""
        summary = self.summary
        if not self._stopped:
            summary.taken_back = self._insist(lambda: rescue_from_outside(self._rest))
        prune = self._insist(lambda: retention.prune(self.rule))
        while not self._stopped:
            removed = self._insist(lambda: next(prune, None))
            summary.removed, summary.kept = prune.removed, prune.kept
            if removed is None:
                break
            on_batch(removed)
            self._rest(prune.pause)
        if not self._stopped:
            summary.workers_removed = self._insist(retention.prune_workers)
        summary.workers_lost = self._insist(lost_workers)
        summary.complete = not self._stopped
        return summary

    def _insist(self, step: Callable[[], T]) -> T:
        """Try a step again and again while the database does not answer."""
        trouble = Trouble()
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return step()
            except TROUBLE as error:
                now = time.monotonic()
                if self._stopped or now >= give_up or is_unmigrated(error):
                    raise
                pause = trouble.strike(now)
                logger.warning(
                    "The database does not answer (%s); next try in %g s",
                    escaped(str(error).strip()),
                    pause,
                )
                connections[alias()].close()
                self._rest(pause)

    def _rest(self, seconds: float) -> bool:
        """Sleep for this long, or until it is stopped; return whether to continue."""
        if not self._stopped:
            with suppress(Empty):
                self._stops.get(timeout=seconds)
        return not self._stopped


def lost_workers() -> int:
    """Return the number of rows of lost workers; the admin lists them."""
    return Worker.primary.lost(database_now(alias())).count()
