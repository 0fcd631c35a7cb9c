"""How runs that must stop are made to, step by step: told, interrupted, given up."""

from __future__ import annotations

from collections.abc import Iterable

from tasks_app.conf import task_settings
from tasks_app.exceptions import TaskTimedOut
from tasks_app.logs import SafeLogger
from tasks_app.models import Worker
from tasks_app.worker.execution import Outcome, given_up
from tasks_app.worker.pool import Pool
from tasks_app.worker.queries import end_left_behind
from tasks_app.worker.run import NEVER, Run
from tasks_app.worker.shutdown import Exit
from tasks_app.worker.trouble import Trouble

logger = SafeLogger("tasks_app.worker")

#: How soon an interruption is tried again that would have hit code which must not be interrupted.
AGAIN_SECONDS = 0.01
#: For how many leases SQLite may be locked before transactions of ended tasks are rolled back.
LOCKED_LEASES = 2


def enforce(runs: Iterable[Run], pool: Pool, moment: float) -> list[Outcome]:
    """Take the next step with each run that is due for one; return the outcomes of those given up.

    A run out of time, or cancelled, is told so by its next progress call. After
    TASK_INTERRUPT_GRACE_SECONDS an exception is raised in its thread; after as long again it is
    given up: its task ends as if it had stopped, and another thread takes its hand's place.
    """
    outcomes = []
    for run in runs:
        if moment >= run.deadline:
            logger.warning("Task %s is out of time", run, extra=run.log_extra)
            run.stop(TaskTimedOut(f"Timed out after {run.task.timeout_seconds:g} s."))
        if moment >= run.interrupt_at:
            if _interrupt(run):
                run.interrupted(moment)
            else:
                run.interrupt_at = moment + AGAIN_SECONDS
        if moment >= run.abandon_at:
            run.interrupt_at = run.abandon_at = NEVER
            if pool.abandon(run):
                logger.error(
                    "Task %s does not stop; its thread is given up as stuck",
                    run,
                    extra=run.log_extra,
                )
                outcomes.append(given_up(run))
    return outcomes


def free_lock(trouble: Trouble, runs: Iterable[Run], moment: float) -> None:
    """Roll back what threads of ended tasks hold SQLite's lock with, once it was held for long.

    Such a thread keeps the whole site from writing for as long as the process lives.
    """
    if moment - trouble.locked_since < LOCKED_LEASES * task_settings().lease_seconds:
        return
    trouble.locked_since = moment
    for thread in end_left_behind({run.stretch.queries for run in runs}):
        logger.error(
            "SQLite was locked for %d leases: the transaction was rolled back that thread %s of "
            "an ended task had left open",
            LOCKED_LEASES,
            thread,
        )


def wants_restart(worker: Worker, pool: Pool, running: int) -> bool:
    """Whether so many threads are stuck that the worker's process should be replaced."""
    if (stuck := pool.stuck) < task_settings().max_stuck:
        return False
    logger.error(
        "Worker %s has %d stuck threads: it claims no more, and ends with code %d once its %d "
        "running tasks have",
        worker,
        stuck,
        Exit.RECYCLE,
        running,
    )
    return True


def _interrupt(run: Run) -> bool:
    """Raise in the run's thread, where that is allowed; return whether there is no more to do."""
    assert run.handle.reason is not None  # noqa: S101 - it was told to stop, and so why
    if not task_settings().interrupt:
        return True
    if run.cls is None:
        # Its hand is importing the class, which must not be broken off halfway; or is not at it.
        return not run.stretch.entered
    if not run.cls.interruptible:
        return True
    done = run.stretch.interrupt(type(run.handle.reason))
    if run.stretch.interrupted:
        logger.warning("Task %s was interrupted in its thread", run, extra=run.log_extra)
    return done
