"""The tasks that a worker has claimed: each attempt, its outcome, and all of them together."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self

from django.db.models import Min, Q

from tasks_app.conf import task_settings
from tasks_app.exceptions import LeaseLost, TaskCancelled, TaskInterrupted
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, Worker
from tasks_app.schemas import TaskProgressUpdate, ascii_only
from tasks_app.states import Verb
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.progress import LogLine, ProgressHandle
from tasks_app.worker.interruption import InterruptibleSection

logger = SafeLogger("tasks_app.worker")

NEVER = float("inf")
#: The pause before a row that another session locked is tried again, and the try that is logged.
HELD_SECONDS, HELD_LOGGED = 0.1, 10
#: A worker with fewer threads than this claims at most this many tasks at a time.
GROUP_MAX = 200
#: If no thread finishes a task for this long, the tasks that wait for a thread are released.
UNBEGUN_SECONDS = 0.1


@dataclass(eq=False)
class Run:
    """One attempt of a task that this worker has claimed.

    The coordinator's thread writes every field except `began` and `cls`, which the worker thread
    sets. The worker thread also reads `task` and `handle`. All times are of the monotonic clock.
    """

    task: Task
    claim: Claim
    handle: ProgressHandle
    #: The time that a thread spends in the task's code.
    section: InterruptibleSection = field(default_factory=InterruptibleSection)
    claimed: float = field(default_factory=time.monotonic)
    #: The time at which a thread began it.
    began: float = NEVER
    #: The task's class, once the thread has imported it. The coordinator must not import it: it
    #: would wait for an import that a thread has begun, and its leases would expire.
    cls: type[BaseTask] | None = None
    #: Taken from the handle and not yet written.
    progress: TaskProgressUpdate | None = None
    lines: list[LogLine] = field(default_factory=list)
    #: The database refused a text of this task, so its texts are written in ASCII from then on.
    ascii_only: bool = False
    #: The time from which newer progress may be written.
    flush_at: float = 0.0
    #: The number of tries in a row at which another session held its row, and the time of the next.
    held: int = 0
    held_until: float = 0.0
    #: The claim is stale: every write of it would be refused.
    lost: bool = False
    #: After a request to stop: when the run is interrupted, and when its thread is abandoned.
    interrupt_at: float = NEVER
    abandon_at: float = NEVER
    #: The seconds between those two.
    grace: float = 0.0

    def take(self) -> None:
        """Take what the task has reported. It is added to what was taken and not yet written."""
        progress, lines = self.handle.take()
        self.progress = progress or self.progress
        self.lines += lines
        if self.ascii_only:
            self.use_ascii()

    def use_ascii(self) -> None:
        """Convert the texts to characters that every encoding has, now and after each `take`."""
        self.ascii_only = True
        if self.progress:
            text = ascii_only(self.progress.text)
            self.progress = TaskProgressUpdate(text=text, value=self.progress.value)
        self.lines = [LogLine(line.level, ascii_only(line.message)) for line in self.lines]

    def written(self, next_flush: float) -> None:
        """Forget what was taken, because it is written now."""
        self.progress = None
        self.lines = []
        self.flush_at = next_flush
        self.held, self.held_until = 0, 0.0

    def hold_back(self, now: float) -> bool:
        """Leave its row alone for a short time; return whether to log that now."""
        self.held += 1
        self.held_until = now + HELD_SECONDS
        return self.held == HELD_LOGGED

    def stop(self, reason: TaskInterrupted, grace: float | None = None) -> bool:
        """Ask the task to stop within the grace; return False if it was asked before."""
        if self.handle.reason is not None:
            return False
        self.handle.stop(reason)
        self.grace = task_settings().interrupt_grace_seconds if grace is None else grace
        self.interrupt_at = time.monotonic() + self.grace
        self.abandon_at = self.interrupt_at + self.grace
        return True

    def interrupted(self, now: float) -> None:
        """Start the time that it has to end, which counts from its interruption, however late."""
        self.interrupt_at = NEVER
        self.abandon_at = now + self.grace

    @property
    def deadline(self) -> float:
        timeout = self.task.timeout_seconds
        return NEVER if timeout is None or self.handle.reason else self.began + timeout

    @property
    def next_stop(self) -> float:
        """The time of the next step to stop it."""
        return min(self.deadline, self.interrupt_at, self.abandon_at)

    @property
    def ordinal(self) -> str:
        return f"attempt {self.task.attempt} of {self.task.max_attempts}"

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 0.0)

    @property
    def log_extra(self) -> dict[str, Any]:
        return {"task_id": str(self.task.pk)}

    def __str__(self) -> str:
        return f"{self.task.pk} ({self.task.name})"


class Outcome(NamedTuple):
    """The end of a run: the verb to write, and the value that this verb needs."""

    run: Run
    verb: Verb
    value: Any = None


class Runs(dict[Claim, Run]):
    """Every run that has or waits for a thread, also lost ones. For the coordinator's thread."""

    def __init__(self) -> None:
        super().__init__()
        #: Outcomes that are not yet written. An outcome from a thread replaces one that the
        #: coordinator decided in the meantime: finished work must not be released.
        self.outcomes: dict[Run, Outcome] = {}
        #: Runs with progress to write.
        self.reported: set[Run] = set()

    @property
    def unfinished(self) -> list[Run]:
        """The runs that have no outcome yet."""
        return [run for run in self.values() if run not in self.outcomes]

    @property
    def next_writes(self) -> Iterator[float]:
        """The times at which there is something to write."""
        yield from (max(run.flush_at, run.held_until) for run in self.reported)
        yield from (run.held_until for run in self.outcomes)

    def due(self, now: float) -> set[Run]:
        """Return the runs of which something must be written now."""
        due = {run for run in self.reported if now >= run.flush_at} | self.outcomes.keys()
        return {run for run in due if now >= run.held_until}

    def take_in(self, item: Outcome | Run) -> bool:
        """Take what a thread delivered; return whether it is an outcome of a known run.

        A run is unknown if it was abandoned, or released at the end of a shutdown.
        """
        run = item.run if isinstance(item, Outcome) else item
        if run.claim not in self:
            return False
        if isinstance(item, Outcome):
            self.outcomes[run] = item
            return True
        self.reported.add(run)
        return False

    def conclude(self, outcomes: Iterable[Outcome]) -> None:
        """Set these outcomes, unless the threads deliver others before they are written."""
        self.outcomes |= {outcome.run: outcome for outcome in outcomes}

    def hold_back(self, claims: Iterable[Claim], now: float) -> None:
        """Leave runs alone for a short time, because other sessions hold their rows.

        Their leases are not renewed, but a rescue also checks for a recent heartbeat.
        """
        for claim in claims:
            run = self[claim]
            if run.hold_back(now):
                logger.warning(
                    "Another session holds the row of task %s; "
                    "its progress is written once that session releases it",
                    run,
                    extra=run.log_extra,
                )

    def lose(self, claims: Collection[Claim]) -> None:
        """Stop runs whose claims are stale."""
        for claim in claims:
            run = self[claim]
            if not run.lost:
                run.lost = True
                run.stop(LeaseLost())
                logger.warning(
                    "Task %s was taken from this worker; its further writes are refused",
                    run,
                    extra=run.log_extra,
                )

    def settle(self, outcome: Outcome) -> None:
        """Forget a run whose outcome is written, or was refused."""
        del self[outcome.run.claim]
        self.outcomes.pop(outcome.run, None)
        self.reported.discard(outcome.run)


# The number of tasks to claim, and the time to release claims.


def room(threads: int, runs: int, outcomes: Collection[Outcome]) -> int:
    """Return how many tasks to claim: one for each free thread, and more while tasks are short.

    Assume that the threads finish as many tasks until the next cycle as they did since the last
    one. With twice that many claimed, each commit carries many outcomes. With only one task for
    each thread, the threads would be idle during every commit.
    """
    finished = sum(outcome.verb is not Verb.RELEASE for outcome in outcomes)
    aim = min(max(threads, 2 * finished), max(threads, GROUP_MAX))
    return aim - (runs - len(outcomes))


def recall_at(
    threads: int, runs: Iterable[Run], unfinished: int, delivered_at: float, now: float
) -> float:
    """Return when to release runs that no thread has begun.

    If all threads are busy, wait for some time after a thread last finished a run.
    """
    waiting = [run.claimed for run in runs if run.began == NEVER]
    if not waiting:
        return NEVER
    all_busy = unfinished - len(waiting) >= threads
    return (max(delivered_at, min(waiting)) if all_busy else now) + UNBEGUN_SECONDS


# Comparison with the database.


@dataclass(frozen=True, slots=True)
class Standing:
    """The claims that the database has."""

    valid: set[Claim] = field(default_factory=set)
    #: Claims of tasks with a cancel request.
    cancelled: set[Claim] = field(default_factory=set)
    #: Claims that are recorded for this worker.
    own: set[Claim] = field(default_factory=set)

    @classmethod
    def of(cls, worker: Worker, claims: Collection[Claim]) -> Self:
        """Read all claims of a worker, also those that are not among the given ones."""
        standing = cls()
        ids = [claim.task_id for claim in claims]
        rows = Task.primary.running().filter(Q(worker=worker) | Q(pk__in=ids)).order_by()
        for task_id, token, requested, worker_id in rows.values_list(
            "pk", "fencing_token", "cancel_requested_at", "worker_id"
        ):
            assert token is not None  # noqa: S101 - a running row has one, by constraint
            claim = Claim(task_id, token)
            standing.valid.add(claim)
            if requested:
                standing.cancelled.add(claim)
            if worker_id == worker.pk:
                standing.own.add(claim)
        return standing


def compare(worker: Worker, runs: Runs, now: datetime) -> set[Claim]:
    """Compare the runs with the database; return the stale claims.

    Ask runs with a cancel request to stop. Release claims that are not among the runs: their commit
    succeeded, but its answer was lost with the connection.
    """
    standing = Standing.of(worker, runs)
    for claim in standing.cancelled & runs.keys():
        run = runs[claim]
        if run.stop(TaskCancelled()):
            logger.info("Task %s is asked to cancel", run, extra=run.log_extra)
    lifecycle.release(standing.own - runs.keys(), now=now)
    return runs.keys() - standing.valid


def next_due(db_now: datetime, now: float) -> float:
    """Return when the next delayed task of any queue may start, by the monotonic clock.

    An index answers that for all queues. A look that finds nothing costs less than finding the
    next task of some queues.
    """
    delayed = Task.primary.waiting([]).filter(run_after__gt=db_now).order_by()
    soonest = delayed.aggregate(soonest=Min("run_after"))["soonest"]
    return now + (soonest - db_now).total_seconds() if soonest else NEVER
