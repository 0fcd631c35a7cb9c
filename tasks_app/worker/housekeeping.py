"""What every worker does on the side: take back lost tasks, delete old ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from django.db import InterfaceError, OperationalError

from tasks_app import lifecycle, retention
from tasks_app.conf import task_settings

logger = logging.getLogger("tasks_app.cleanup")

#: Between two batches of a prune, so that it does not hold up the worker's own writes.
BATCH_PAUSE = 0.05


def rescue() -> int:
    """Take back the tasks of workers that were lost; return how many."""
    lost = lifecycle.rescue()
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
        self._batches: Iterator[int] | None = None
        self._pruned = 0

    def step(self, moment: float) -> None:
        """Delete one batch. Trouble with the database is the caller's; other failures are logged,
        and the next prune is as due as ever.
        """
        if self._batches is None:
            self._batches = retention.prune(retention.Rule.of_site())
            self._pruned = 0
        try:
            size = next(self._batches, None)
            if size is None:
                retention.prune_workers()
        except (OperationalError, InterfaceError):
            # A generator that raised is over.
            self._batches = None
            raise
        except Exception:
            # Such as a row of the site's own that protects its task from deletion.
            logger.exception("Finished tasks could not be removed")
            size = None
        if size is not None:
            self._pruned += size
            self.next_step = moment + BATCH_PAUSE
            return
        if self._pruned:
            logger.info("Removed %d finished tasks past their retention", self._pruned)
        self._batches = None
        self.next_step = moment + task_settings().cleanup_interval_seconds
