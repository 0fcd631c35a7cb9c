"""The coordinator: claims tasks, gives them to threads, and writes their progress and outcomes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable
from functools import partial

from django.db import reset_queries, transaction

from tasks_app.conf import task_settings
from tasks_app.exceptions import TaskReleased
from tasks_app.logs import SafeLogger
from tasks_app.models import Task
from tasks_app.notify import Changes, watch
from tasks_app.states import Verb
from tasks_app.store import lifecycle
from tasks_app.store.claims import claim_of
from tasks_app.store.database_file import DatabaseReplaced
from tasks_app.store.ledger import alias, begin, reserve
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.worker import presence
from tasks_app.worker.housekeeping import Pruner, Rescuer
from tasks_app.worker.outcomes import cut_short, log_outcome, write, write_alone
from tasks_app.worker.readiness import Fitness, Preload
from tasks_app.worker.runs import NEVER, Outcome, Run, Runs, compare, next_due, recall_at, room
from tasks_app.worker.stopping import (
    STOP_SECONDS,
    ExitCode,
    Shutdown,
    enforce,
    free_lock,
    stop_unrecorded,
    wants_restart,
)
from tasks_app.worker.threads import Pool
from tasks_app.worker.trouble import REFUSED, TROUBLE, Connection, explained, missing_is_trouble

logger = SafeLogger("tasks_app.worker")

#: If a look left no task waiting, the pause before the next change is looked into. Most changes
#: are this worker's own commits, and on a busy site each would otherwise cause queries.
LOOK_PAUSE = 0.005


class Coordinator:
    """Owns a worker's database connection and makes every write of its tasks.

    Each cycle is one transaction for all threads together: newest progress, outcomes, leases,
    cancel requests, new claims. If it fails, none of it has happened, and what the threads
    delivered waits in memory for the next cycle. Belongs to one thread; other threads may only call
    `stop` and `_deliver`.
    """

    def __init__(
        self,
        threads: int,
        queues: Iterable[str] = (),
        *,
        drain: bool = False,
        max_tasks: int | None = None,
    ) -> None:
        self.using = alias()
        self.threads = threads
        self.queues = list(queues)
        self.drain = drain
        #: The number of tasks that it may still claim.
        self.allowance: float = NEVER if max_tasks is None else max_tasks
        self.ended = 0
        self.shutdown = Shutdown()
        #: The exit code for its process.
        self.exit = ExitCode.DONE
        #: Threads were still running when it ended.
        self.threads_left = False
        self.runs = Runs()
        self.heart = presence.Heart()
        self._connection = Connection(self.using)
        self._changes: Changes | None = None
        self._inbox: deque[Outcome | Run] = deque()
        #: There may be tasks to claim, and cancel requests to notice.
        self._hungry = self._curious = True
        #: The next times to look into changes, send a heartbeat, and claim a delayed task. All are
        #: of the monotonic clock.
        self._look_at = self._beat_at = 0.0
        self._claim_at = NEVER
        #: The time at which a thread last delivered an outcome.
        self._delivered_at = 0.0
        #: The database refused the last transaction for its content.
        self._refused = False
        #: A claim may have been committed that is not in `runs`, because its answer was lost.
        self._unsure = False

    def stop(self) -> None:
        """Claim no more, and end once the running tasks have. A second call skips the wait."""
        self.shutdown.signal()
        if self._changes is not None:
            self._changes.wake()

    def run(self) -> int:
        """Work until stopped, drained or out of allowance. Return how many tasks ended."""
        self._connection.refuse_transaction()
        with watch(self.using) as changes:
            self._changes = changes
            if not self._register(changes):
                return self.ended
            self.rescuer = Rescuer(time.monotonic())
            self.pruner = Pruner(time.monotonic())
            self.pool = Pool(self.threads, self._deliver)
            self.fitness = Fitness()
            self.preload = Preload(changes.wake)
            logger.info(
                "Worker %s started: %d threads, %s",
                self.worker,
                self.threads,
                f"queues {', '.join(self.queues)}" if self.queues else "all queues",
            )
            try:
                while not self._finished:
                    if changes.wait(self._patience()):
                        self._hungry = self._curious = True
                    self._cycle()
            except DatabaseReplaced as error:
                self._abandon(error)
            finally:
                self._leave()
        logger.info("Worker %s stopped (tasks ended: %d)", self.worker, self.ended)
        return self.ended

    def _register(self, changes: Changes) -> bool:
        """Insert the worker's row once the database answers; return False if stopped before."""
        while not self.shutdown.requested:
            self._connection = Connection(self.using)
            try:
                self._connection.open()
                self.worker = presence.register(self.threads, self.queues)
            except (DatabaseReplaced, *TROUBLE) as error:
                self._wait_out(error)
                changes.pause(self._connection.trouble.pause)
            else:
                self._connection.works()
                return True
        return False

    @property
    def _finished(self) -> bool:
        if self.shutdown.gives_up(time.monotonic()):
            logger.error("Worker %s ends with %d tasks not released", self.worker, len(self.runs))
            self.exit = ExitCode.UNRELEASED
            return True
        if self.runs or self._inbox or self._unsure:
            return False
        drained = self.drain and not self._hungry and not self.rescuer.waits
        return self._leaving or drained or self.allowance < 1

    @property
    def _leaving(self) -> bool:
        """True if it claims no more, and ends once its running tasks have."""
        return self.shutdown.requested or self.exit is ExitCode.RECYCLE

    @property
    def _can_claim(self) -> bool:
        unfit = self._leaving or self.heart.held or self.fitness.fault
        return not unfit and not self.preload.holds_up(time.monotonic()) and self._limit() > 0

    def _limit(self) -> int:
        outcomes = self.runs.outcomes.values()
        return int(min(room(self.threads, len(self.runs), outcomes), self.allowance))

    def _patience(self) -> float:
        """Return the seconds until something is due, if nothing arrives before."""
        stops = [self.shutdown.next_step, *(run.next_stop for run in self.runs.unfinished)]
        if (trouble := self._connection.trouble).started:
            return max(min(trouble.retry_at, *stops) - time.monotonic(), 0.0)
        times = [self._beat_at, self.preload.deadline, self.fitness.next_look, *stops]
        if not self.shutdown.requested:
            times.append(self.pruner.next_step)
        times += self.runs.next_writes
        times.append(self._recall_at(time.monotonic()))
        if self._curious and self.runs:
            times.append(self._look_at)
        if self._can_claim:
            times.append(self._look_at if self._hungry else self._claim_at)
        return max(min(times) - time.monotonic(), 0.0)

    def _cycle(self) -> None:
        """Take in what arrived, then do what is due in one transaction."""
        now = time.monotonic()
        reset_queries()  # With DEBUG, Django keeps them, with all their parameters.
        self._collect()
        self._recall_unbegun(now)
        self._check_shutdown(now)
        self._enforce_stops(now)
        if now < self._connection.trouble.retry_at:
            return
        if now >= self._claim_at:
            self._hungry = True
        beating = now >= self._beat_at
        looking = beating or (self._curious and bool(self.runs) and now >= self._look_at)
        writing = self.runs.due(now)
        ending = writing & self.runs.outcomes.keys()
        claiming = self._can_claim and self._hungry and (bool(ending) or now >= self._look_at)
        if beating or claiming or now >= self.fitness.next_look:
            claiming = self.fitness.look(now, thorough=beating) and claiming
        try:
            self._connection.reopen()
            if writing or beating or looking or claiming:
                self._commit(now, writing, beating, looking, claiming)
            self._connection.works()
            self._refused = False
        except TROUBLE as error:
            self._connection.verify()
            self._unsure = self._unsure or claiming
            self._wait_out(error, now)
        except REFUSED:
            # Try again without the refused text of a run. If no text was refused, the cause may be
            # that this worker's row was deleted, and a heartbeat inserts it again.
            self._beat_at = 0.0
            found = self._isolate(writing)
            if self._refused and not found:
                raise
            self._refused = not found
        else:
            self._do_chores(now, beating)

    def _do_chores(self, now: float, beating: bool) -> None:
        """Rescue others' tasks and prune old ones. Their errors must not affect our own tasks."""
        if beating:
            self.rescuer.beat(time.monotonic())
        if now >= self.pruner.next_step and not self.shutdown.requested:
            self.pruner.step(now)

    def _isolate(self, writing: Collection[Run]) -> bool:
        """Write each run in a separate transaction; return whether the database refused one.

        So a text or result that the database refuses affects neither other runs nor the worker.
        """
        found = False
        for run in writing:
            try:
                written = write_alone(run, self.runs.outcomes.get(run), self.using)
            except TROUBLE as error:
                self._connection.verify()
                self._wait_out(error)
                return True
            found = found or written.refused
            self.runs.lose(written.stale)
            run.written(time.monotonic() + task_settings().progress_interval_seconds)
            self.runs.reported.discard(run)
            if written.outcome:
                self._settle(written.outcome)
        return found

    @missing_is_trouble()
    def _commit(
        self, now: float, writing: set[Run], beating: bool, looking: bool, claiming: bool
    ) -> None:
        self._connection.verify()
        for run in writing:
            run.take()
        outcomes = self.runs.outcomes
        tasks: list[Task] = []
        limit = self._limit()
        with transaction.atomic(using=self.using):
            db_now = begin(self.using)
            concerned = {*writing, *(self.runs.values() if beating else ())}
            held = reserve([run.claim for run in concerned if not run.lost])
            free = [run for run in writing if not run.lost and run.claim not in held]
            ends = [outcomes[run] for run in free if run in outcomes]
            ending = {outcome.run.claim for outcome in ends}
            stale = set(write(free, ends, db_now))
            if beating:
                busy, stuck = len(self.runs), self.pool.stuck
                claiming &= self.heart.beat(self.worker, db_now, busy=busy, stuck=stuck)
                valid = {run.claim for run in self.runs.values() if not run.lost}
                stale.update(lifecycle.renew(valid - ending - held, now=db_now))
            if looking:
                stale.update(compare(self.worker, self.runs, db_now) - ending)
            if claiming:
                tasks = lifecycle.claim(self.worker, limit, now=db_now)
                claim_at = NEVER if tasks else next_due(db_now, now)
        # If this was committed to a file that no other process has, it does not count.
        self._connection.verify()
        # Only memory is changed below. If the transaction fails, memory must not change.
        self.runs.hold_back(held, now)
        written = {run for run in writing if run.claim not in held}
        self.runs.reported -= written
        for run in written:
            run.written(now + task_settings().progress_interval_seconds)
        self.runs.lose(stale)
        for run in written & outcomes.keys():
            self._settle(outcomes[run])
        if beating:
            self._beat_at = now + self.heart.pause
        if looking:
            self._curious = self._unsure = False
        if claiming:
            self._hungry, self._claim_at = bool(tasks), claim_at
        if not tasks or len(tasks) < limit:
            self._look_at = now + LOOK_PAUSE
        self._submit(tasks)

    # Input from threads, from signals, and from the clock.

    def _deliver(self, item: Outcome | Run) -> None:
        """Take an outcome, or a run with something to report. Called by worker threads."""
        self._inbox.append(item)
        if self._changes is not None:
            self._changes.wake()

    def _collect(self) -> None:
        while self._inbox:
            if self.runs.take_in(self._inbox.popleft()):
                self._delivered_at = time.monotonic()
                # A drain must also run tasks that its tasks start, even without a change signal.
                self._hungry = self._hungry or self.drain

    def _check_shutdown(self, now: float) -> None:
        if self.shutdown.handle_signals(now):
            logger.info(
                "Worker %s is stopping (running tasks: %d; they have %g s to finish)",
                self.worker,
                len(self.runs),
                task_settings().shutdown_grace_seconds,
            )
        if self.shutdown.interrupts(now):
            for run in self.runs.unfinished:
                run.stop(TaskReleased(), STOP_SECONDS / 2)
        if self.shutdown.releases(now):
            self.runs.conclude(map(cut_short, self.runs.unfinished))

    def _enforce_stops(self, now: float) -> None:
        """Take the next steps with runs that must stop, and with locks and threads left behind."""
        self.runs.conclude(enforce(self.runs.unfinished, self.pool, now))
        free_lock(self._connection.trouble, self.runs.unfinished, now)
        if self.exit is ExitCode.DONE and (
            self.fitness.spoilt or wants_restart(self.worker, self.pool, len(self.runs))
        ):
            self.exit = ExitCode.RECYCLE

    def _recall_unbegun(self, now: float) -> None:
        """Release runs that wait here while all threads are busy: another worker may be free."""
        if self._leaving or self.fitness.fault or now >= self._recall_at(now):
            self.runs.conclude(Outcome(run, Verb.RELEASE) for run in self.pool.recall())

    def _recall_at(self, now: float) -> float:
        unfinished = len(self.runs) - len(self.runs.outcomes)
        return recall_at(self.threads, self.runs.values(), unfinished, self._delivered_at, now)

    def _submit(self, tasks: list[Task]) -> None:
        if tasks:
            logger.debug("Worker %s claimed %d tasks", self.worker, len(tasks))
        for task in tasks:
            handle = ProgressHandle()
            run = Run(task, claim_of(task), handle)
            handle.notify = partial(self._deliver, run)
            self.runs[run.claim] = run
            self.allowance -= 1
            logger.info("Task %s started: %s", run, run.ordinal, extra=run.log_extra)
            self.pool.submit(run)

    def _settle(self, outcome: Outcome) -> None:
        self.runs.settle(outcome)
        run, verb, value = outcome
        if not run.lost:
            self.ended += verb not in (Verb.RELEASE, Verb.RETRY)
            self.allowance += verb is Verb.RELEASE
            log_outcome(run, verb, value)

    def _wait_out(self, error: Exception, begun: float | None = None) -> None:
        self._connection.wait_out(error, len(self.runs.outcomes), begun)
        # The comparison at the next heartbeat finds claims that were committed without an answer.
        self._beat_at = 0.0

    def _abandon(self, error: DatabaseReplaced) -> None:
        """Begin nothing more, and log what was not written: no other process has this database."""
        self.exit = ExitCode.REPLACED
        logger.critical("Worker %s ends at once with code %d: %s", self.worker, self.exit, error)
        self.pool.recall()
        self._collect()
        stop_unrecorded(self.runs)

    def _leave(self) -> None:
        self.pool.close()
        self.threads_left = not self.pool.join() or self.pool.stuck > 0
        if self.exit is ExitCode.UNRELEASED:
            # A thread that blocks the database may also keep Python from ending.
            self.threads_left = True
            return
        if self.exit is ExitCode.REPLACED:
            # A normal end of Python would close the connection. SQLite would then delete the log of
            # the database that is at this path now.
            self.threads_left = True
            return
        try:
            self._connection.reopen()
            with transaction.atomic(using=self.using):
                presence.leave(self.worker, begin(self.using), stuck=self.pool.stuck)
        except TROUBLE as error:
            logger.warning("The worker could not sign off: %s", explained(error))
