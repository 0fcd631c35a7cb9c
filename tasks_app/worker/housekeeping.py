"""What every worker does on the side: take back lost tasks, delete old ones."""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.models import Task
from tasks_app.schemas import ascii_only, escaped
from tasks_app.store import lifecycle, retention
from tasks_app.store.ledger import alias, begin
from tasks_app.worker.trouble import REFUSED, TROUBLE, Trouble, explained

logger = SafeLogger("tasks_app.cleanup")

#: How many lost tasks are taken back in one transaction.
RESCUE_BATCH = 100
#: Between two batches of a worker's prune, at the least: its own writes come first.
BATCH_PAUSE = 0.05


def rescue(now: datetime | None = None) -> int:
    """Take back the tasks of workers that were lost at a moment; return how many.

    Where the database refuses what one of them had said, tasks are taken back one by one, that one
    without its progress.
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


class Pruner:
    """Prunes every TASK_CLEANUP_INTERVAL_SECONDS, a batch at a step."""

    def __init__(self, moment: float) -> None:
        self.next_step = moment
        self._prune: retention.Prune | None = None
        self._trouble = Trouble()

    def step(self, moment: float) -> None:
        """Delete one batch. What goes wrong is logged: trouble with the database is waited out, for
        a growing while; after anything else the next prune is as due as ever.
        """
        prune = self._prune
        try:
            if prune is None:
                prune = self._prune = retention.prune(retention.Rule.of_site())
            if next(prune, None) is not None:
                self._trouble = Trouble()
                self.next_step = moment + prune.seconds + max(prune.pause, BATCH_PAUSE)
                return
            retention.prune_workers()
        except TROUBLE as error:
            self.next_step = moment + self._trouble.strike(moment)
            logger.warning("Finished tasks cannot be removed just now: %s", explained(error))
            return
        except Exception:
            # Such as a signal handler of the site's own that fails on what is deleted.
            logger.exception("Finished tasks could not be removed")
        if prune is not None and prune.removed:
            logger.info("Removed %d finished tasks past their retention", prune.removed)
        self._prune, self._trouble = None, Trouble()
        self.next_step = moment + task_settings().cleanup_interval_seconds
