"""The steps that stop a worker and its runs.

`Shutdown` decides what happens after the first and the second signal to the worker. `enforce` stops
a single run: it is asked, then interrupted, then its thread is abandoned.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from tasks_app.conf import task_settings
from tasks_app.exceptions import LeaseLost, TaskTimedOut
from tasks_app.logs import SafeLogger
from tasks_app.models import Worker
from tasks_app.worker.interruption import end_left_behind
from tasks_app.worker.outcomes import stuck_outcome
from tasks_app.worker.runs import NEVER, Outcome, Run, Runs
from tasks_app.worker.threads import Pool
from tasks_app.worker.trouble import Trouble

logger = SafeLogger("tasks_app.worker")

#: The time that tasks have to clean up at a shutdown before they are released. Half-way through,
#: tasks that have made no progress call are interrupted.
STOP_SECONDS = 1.0
#: The time for which the release is tried if the database does not accept it.
RELEASE_SECONDS = 5.0
#: The pause before another try to interrupt code that must not be interrupted at the moment.
AGAIN_SECONDS = 0.01
#: If SQLite is locked for this many leases, transactions of ended tasks are rolled back.
LOCKED_LEASES = 2


class ExitCode(IntEnum):
    """The exit codes of a worker's process."""

    #: It ended normally: after a signal, drained, or out of allowance.
    DONE = 0
    #: The SQLite file was replaced or deleted while it was open. (EX_OSFILE)
    REPLACED = 72
    #: The database did not accept the release of its tasks; others will rescue them. (EX_IOERR)
    UNRELEASED = 74
    #: The process must be replaced: too many of its threads are stuck, or it cannot run tasks any
    #: more. (EX_TEMPFAIL)
    RECYCLE = 75


class Shutdown:
    """The steps of a worker's shutdown. Times are of the monotonic clock.

    First signal: claim no more, let tasks finish. After the grace: interrupt, then release. A
    second signal skips the waits.
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

    def handle_signals(self, now: float) -> bool:
        """Set the times of the steps; return whether the first signal has come since the last call.

        A third signal delays nothing, nor does another call: the worker always ends in time.
        """
        before, self._seen = self._seen, self._signals
        if self._seen > max(before, 1):
            self.interrupt_at = min(self.interrupt_at, now)
            self.release_at = min(self.release_at, now)
        elif self._seen > before:
            self.interrupt_at = now + task_settings().shutdown_grace_seconds
            self.release_at = self.interrupt_at + STOP_SECONDS
        return before == 0 < self._seen

    def interrupts(self, now: float) -> bool:
        """Return whether running tasks must now be asked to stop. True once."""
        due = now >= self.interrupt_at
        if due:
            self.interrupt_at = NEVER
        return due

    def releases(self, now: float) -> bool:
        """Return whether tasks that still run must now be released."""
        self._released = now >= self.release_at
        return self._released

    def gives_up(self, now: float) -> bool:
        """Return whether to end without the release. Leases expire, and others rescue the tasks."""
        return now >= self.release_at + RELEASE_SECONDS


def enforce(runs: Iterable[Run], pool: Pool, now: float) -> list[Outcome]:
    """Take the next step with each run that is due for one; return the outcomes of stuck runs.

    A run that is timed out or cancelled is stopped by its next progress call. After
    TASK_INTERRUPT_GRACE_SECONDS an exception is raised in its thread. After the same time again the
    thread is abandoned: the task ends as if it had stopped, and another thread takes its place.
    """
    outcomes = []
    for run in runs:
        if now >= run.deadline:
            logger.warning("Task %s is out of time", run, extra=run.log_extra)
            run.stop(TaskTimedOut(f"Timed out after {run.task.timeout_seconds:g} s."))
        if now >= run.interrupt_at:
            if _interrupt(run):
                run.interrupted(now)
            else:
                run.interrupt_at = now + AGAIN_SECONDS
        if now >= run.abandon_at:
            run.interrupt_at = run.abandon_at = NEVER
            if pool.abandon(run):
                logger.error(
                    "Task %s does not stop; its thread is given up as stuck",
                    run,
                    extra=run.log_extra,
                )
                outcomes.append(stuck_outcome(run))
    return outcomes


def _interrupt(run: Run) -> bool:
    """Raise in the run's thread if that is allowed; return whether there is nothing left to do."""
    assert run.handle.reason is not None  # noqa: S101 - it was asked to stop, with a reason
    if not task_settings().interrupt:
        return True
    if run.cls is None:
        # The thread imports the class, which must not be interrupted; or has not begun, or ended.
        return not run.section.entered
    if not run.cls.interruptible:
        return True
    done = run.section.interrupt(type(run.handle.reason))
    if run.section.interrupted:
        logger.warning("Task %s was interrupted in its thread", run, extra=run.log_extra)
    return done


def free_lock(trouble: Trouble, runs: Iterable[Run], now: float) -> None:
    """Roll back transactions of ended tasks' threads, if SQLite has been locked for long.

    A thread with such a transaction keeps the whole site from writing as long as the process lives.
    """
    if now - trouble.locked_since < LOCKED_LEASES * task_settings().lease_seconds:
        return
    trouble.locked_since = now
    for thread in end_left_behind({run.section.queries for run in runs}):
        logger.error(
            "SQLite was locked for %d leases: the transaction was rolled back that thread %s of "
            "an ended task had left open",
            LOCKED_LEASES,
            thread,
        )


def wants_restart(worker: Worker, pool: Pool, running: int) -> bool:
    """Return whether so many threads are stuck that the worker's process should be replaced."""
    if (stuck := pool.stuck) < task_settings().max_stuck:
        return False
    logger.error(
        "Worker %s has %d stuck threads: it claims no more, and ends with code %d once its %d "
        "running tasks have",
        worker,
        stuck,
        ExitCode.RECYCLE,
        running,
    )
    return True


def stop_unrecorded(runs: Runs) -> None:
    """Stop tasks whose ends a worker can no longer write, and log what it knows of them."""
    for run in runs.values():
        run.stop(LeaseLost(), STOP_SECONDS / 2)
        outcome = runs.outcomes.get(run)
        if outcome:
            state = f"ended after {run.seconds:.3f} s ({outcome.verb.value})"
        else:
            state = "had not begun" if run.began == NEVER else f"had run for {run.seconds:.3f} s"
        logger.error("Not recorded: task %s %s", run, state, extra=run.log_extra)
