"""A clean-up that somebody asked for: from its beginning to its end, or until it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from django.db import connections

from tasks_app.logs import SafeLogger
from tasks_app.models import Worker
from tasks_app.schemas import escaped
from tasks_app.store import retention
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.worker.rescuer import rescue_from_outside
from tasks_app.worker.trouble import TROUBLE, Trouble, is_unmigrated

logger = SafeLogger("tasks_app.cleanup")

T = TypeVar("T")

#: How long it waits for a database that does not answer.
PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Summary:
    """What a clean-up did, so far."""

    #: Tasks taken back from lost workers.
    taken_back: int = 0
    #: Finished tasks deleted, and those that something of the site's refused to let go.
    removed: int = 0
    kept: int = 0
    #: Records of workers that are gone: those deleted, and those that never signed off.
    workers_removed: int = 0
    workers_lost: int = 0
    #: False where it was stopped before all was done.
    complete: bool = False


class Cleanup:
    """One clean-up from its beginning to its end, or until it is stopped between two steps.

    Leaves the database to others for half of the time. Waits for one that does not answer, with a
    growing pause, and after PATIENCE_SECONDS without any answer raises what Django raises; what
    was done until then is done, and in the summary.
    """

    def __init__(self, rule: retention.Rule) -> None:
        self.rule = rule
        self.summary = Summary()
        # Its put() may be called from a signal handler, whatever the thread was at.
        self._stops: SimpleQueue[None] = SimpleQueue()
        self._stopped = False

    def stop(self) -> None:
        """End after the present step. May be called from a signal handler."""
        self._stopped = True
        self._stops.put(None)

    def run(self, tell: Callable[[int], object] = lambda removed: None) -> Summary:
        """Take back, prune, forget. Tells how many tasks each batch removed."""
        summary = self.summary
        if not self._stopped:
            summary.taken_back = self._insist(lambda: rescue_from_outside(self._rest))
        prune = self._insist(lambda: retention.prune(self.rule))
        while not self._stopped:
            removed = self._insist(lambda: next(prune, None))
            summary.removed, summary.kept = prune.removed, prune.kept
            if removed is None:
                break
            tell(removed)
            self._rest(prune.pause)
        if not self._stopped:
            summary.workers_removed = self._insist(retention.prune_workers)
        summary.workers_lost = self._insist(lost_workers)
        summary.complete = not self._stopped
        return summary

    def _insist(self, do: Callable[[], T]) -> T:
        """Do it, again and again while the database does not answer."""
        trouble = Trouble()
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return do()
            except TROUBLE as error:
                moment = time.monotonic()
                if self._stopped or moment >= give_up or is_unmigrated(error):
                    raise
                pause = trouble.strike(moment)
                logger.warning(
                    "The database does not answer (%s); next try in %g s",
                    escaped(str(error).strip()),
                    pause,
                )
                connections[alias()].close()
                self._rest(pause)

    def _rest(self, seconds: float) -> bool:
        """Sleep for so long, or until it is stopped; return whether to go on."""
        if not self._stopped:
            with suppress(Empty):
                self._stops.get(timeout=seconds)
        return not self._stopped


def lost_workers() -> int:
    """How many records there are of workers that were lost; the admin shows which."""
    return Worker.primary.lost(database_now(alias())).count()
