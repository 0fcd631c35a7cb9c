"""What every worker does on the side: take back lost tasks, delete old ones."""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import transaction

from tasks_app import lifecycle, retention
from tasks_app.conf import task_settings
from tasks_app.ledger import alias, begin
from tasks_app.worker.trouble import TROUBLE, Trouble, explained

logger = logging.getLogger("tasks_app.cleanup")

#: Between two batches of a worker's prune, at the least: its own writes come first.
BATCH_PAUSE = 0.05


def rescue(now: datetime | None = None) -> int:
    """Take back the tasks of workers that were lost at a moment; return how many."""
    with transaction.atomic(using=alias()):
        begin(alias())
        lost = lifecycle.rescue(now=now)
    for task in lost:
        logger.warning(
            "Task %s (%s) was taken back from worker %s, which stopped responding",
            task.pk,
            task.name,
            task.worker,
            extra={"task_id": str(task.pk)},
        )
    return len(lost)


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
