"""The coordinator: claims tasks, gives them to threads, and writes what becomes of them."""

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
from tasks_app.worker.capacity import recall_at, room
from tasks_app.worker.connection import Connection
from tasks_app.worker.execution import Outcome, cut_short
from tasks_app.worker.fitness import Fitness
from tasks_app.worker.housekeeping import Pruner
from tasks_app.worker.outcomes import forsake, tell, write
from tasks_app.worker.pool import Pool
from tasks_app.worker.preload import Preload
from tasks_app.worker.refused import write_alone
from tasks_app.worker.rescuer import Rescuer
from tasks_app.worker.run import NEVER, Run
from tasks_app.worker.runs import Runs
from tasks_app.worker.shutdown import STOP_SECONDS, Exit, Shutdown
from tasks_app.worker.standing import look, next_due
from tasks_app.worker.stopping import enforce, free_lock, wants_restart
from tasks_app.worker.trouble import REFUSED, TROUBLE, explained, missing_is_trouble

logger = SafeLogger("tasks_app.worker")

#: After a look that left nothing waiting, the soonest that the next change is looked into: most
#: are this worker's own commits, and a busy site's must not each become queries here.
LOOK_PAUSE = 0.005


class Coordinator:
    """Owns a worker's database connection and makes every write of its tasks.

    Each cycle is one transaction, for all threads together: newest progress, outcomes, leases,
    cancel requests, new claims. If it fails, nothing of it has happened, and what the threads
    delivered waits in memory for the next. Belongs to one thread; only `stop` and `_deliver` may
    be called from others.
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
        #: How many more tasks it may claim.
        self.allowance: float = NEVER if max_tasks is None else max_tasks
        self.ended = 0
        self.shutdown = Shutdown()
        #: The code that its process is to exit with.
        self.exit = Exit.DONE
        #: Whether threads were still at it when it ended.
        self.threads_left = False
        self.runs = Runs()
        self.heart = presence.Heart()
        self._connection = Connection(self.using)
        self._changes: Changes | None = None
        self._inbox: deque[Outcome | Run] = deque()
        #: There may be tasks to claim; there may be requests to cancel.
        self._hungry = self._curious = True
        #: The moments, by the monotonic clock, of the next: look into changes, delayed task,
        #: heartbeat.
        self._look_at = self._beat_at = 0.0
        self._claim_at = NEVER
        #: When a hand last delivered an outcome.
        self._delivered_at = 0.0
        #: The last transaction was refused for what it held, not for want of a database.
        self._refused = False
        #: A claim may have been committed that nothing here knows of: its answer did not come.
        self._unsure = False

    def stop(self) -> None:
        """Claim no more and end when the running tasks have; a second call ends at once."""
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
        """Sign on, as soon as there is a database; return False if told to stop before."""
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
            self.exit = Exit.UNRELEASED
            return True
        if self.runs or self._inbox or self._unsure:
            return False
        drained = self.drain and not self._hungry and not self.rescuer.waits
        return self._leaving or drained or self.allowance < 1

    @property
    def _leaving(self) -> bool:
        """Whether it claims no more, and ends once its running tasks have."""
        return self.shutdown.requested or self.exit is Exit.RECYCLE

    @property
    def _can_claim(self) -> bool:
        unfit = self._leaving or self.heart.held or self.fitness.fault
        return not unfit and not self.preload.holds_up(time.monotonic()) and self._limit() > 0

    def _limit(self) -> int:
        known = self.runs.outcomes.values()
        return int(min(room(self.threads, len(self.runs), known), self.allowance))

    def _patience(self) -> float:
        """How many seconds there is nothing to do, unless something comes."""
        stops = [self.shutdown.next_step, *(run.next_stop for run in self.runs.going_on)]
        if (trouble := self._connection.trouble).started:
            return max(min(trouble.retry_at, *stops) - time.monotonic(), 0.0)
        moments = [self._beat_at, self.preload.deadline, self.fitness.next_look, *stops]
        if not self.shutdown.requested:
            moments.append(self.pruner.next_step)
        moments += self.runs.next_writes
        moments.append(self._recall_at(time.monotonic()))
        if self._curious and self.runs:
            moments.append(self._look_at)
        if self._can_claim:
            moments.append(self._look_at if self._hungry else self._claim_at)
        return max(min(moments) - time.monotonic(), 0.0)

    def _cycle(self) -> None:
        """Take in what came, then do what is due in one transaction."""
        moment = time.monotonic()
        reset_queries()  # DEBUG keeps them until then, with all that was written.
        self._collect()
        self._recall_unbegun(moment)
        self._heed_shutdown(moment)
        self._make_stop(moment)
        if moment < self._connection.trouble.retry_at:
            return
        if moment >= self._claim_at:
            self._hungry = True
        beating = moment >= self._beat_at
        looking = beating or (self._curious and bool(self.runs) and moment >= self._look_at)
        writing = self.runs.due(moment)
        ending = writing & self.runs.outcomes.keys()
        claiming = self._can_claim and self._hungry and (bool(ending) or moment >= self._look_at)
        if beating or claiming or moment >= self.fitness.next_look:
            claiming = self.fitness.look(moment, thorough=beating) and claiming
        try:
            self._connection.reopen()
            if writing or beating or looking or claiming:
                self._commit(moment, writing, beating, looking, claiming)
            self._connection.works()
            self._refused = False
        except TROUBLE as error:
            self._connection.verify()
            self._unsure = self._unsure or claiming
            self._wait_out(error, moment)
        except REFUSED:
            # Again without what one task said or, if it was that, with this worker's row back.
            self._beat_at = 0.0
            found = self._isolate(writing)
            if self._refused and not found:
                raise
            self._refused = not found
        else:
            self._do_chores(moment, beating)

    def _do_chores(self, moment: float, beating: bool) -> None:
        """Look after others' tasks and old ones; what hinders that must not hinder our own."""
        if beating:
            self.rescuer.beat(time.monotonic())
        if moment >= self.pruner.next_step and not self.shutdown.requested:
            self.pruner.step(moment)

    def _isolate(self, writing: Collection[Run]) -> bool:
        """Write each run by itself; return whether the database refused one of them.

        One odd text or result must cost neither its neighbours nor this worker.
        """
        found = False
        for run in writing:
            try:
                alone = write_alone(run, self.runs.outcomes.get(run), self.using)
            except TROUBLE as error:
                self._connection.verify()
                self._wait_out(error)
                return True
            found = found or alone.refused
            self.runs.lose(alone.void)
            run.written(time.monotonic() + task_settings().progress_interval_seconds)
            self.runs.reported.discard(run)
            if alone.outcome:
                self._settle(alone.outcome)
        return found

    @missing_is_trouble()
    def _commit(
        self, moment: float, writing: set[Run], beating: bool, looking: bool, claiming: bool
    ) -> None:
        self._connection.verify()
        for run in writing:
            run.take()
        known = self.runs.outcomes
        tasks: list[Task] = []
        limit = self._limit()
        with transaction.atomic(using=self.using):
            now = begin(self.using)
            concerned = {*writing, *(self.runs.values() if beating else ())}
            held = reserve([run.claim for run in concerned if not run.lost])
            kept = [run for run in writing if not run.lost and run.claim not in held]
            outcomes = [known[run] for run in kept if run in known]
            ending = {outcome.run.claim for outcome in outcomes}
            void = set(write(kept, outcomes, now))
            if beating:
                busy, stuck = len(self.runs), self.pool.stuck
                claiming &= self.heart.beat(self.worker, now, busy=busy, stuck=stuck)
                going_on = {run.claim for run in self.runs.values() if not run.lost}
                void.update(lifecycle.renew(going_on - ending - held, now=now))
            if looking:
                void.update(look(self.worker, self.runs, now) - ending)
            if claiming:
                tasks = lifecycle.claim(self.worker, limit, now=now)
                claim_at = NEVER if tasks else next_due(now, moment)
        # Had it committed to a file that nobody else has, none of what follows would be true.
        self._connection.verify()
        # What follows is memory only: had the transaction failed, none of it would be true.
        self.runs.hold_back(held, moment)
        written = {run for run in writing if run.claim not in held}
        self.runs.reported -= written
        for run in written:
            run.written(moment + task_settings().progress_interval_seconds)
        self.runs.lose(void)
        for run in written & known.keys():
            self._settle(known[run])
        if beating:
            self._beat_at = moment + self.heart.pause
        if looking:
            self._curious = self._unsure = False
        if claiming:
            self._hungry, self._claim_at = bool(tasks), claim_at
        if not tasks or len(tasks) < limit:
            self._look_at = moment + LOOK_PAUSE
        self._hand_out(tasks)

    # What came from the threads, from signals, from the clock.

    def _deliver(self, item: Outcome | Run) -> None:
        """Take an outcome, or a run with something to report. Called by worker threads."""
        self._inbox.append(item)
        if self._changes is not None:
            self._changes.wake()

    def _collect(self) -> None:
        while self._inbox:
            if self.runs.take_in(self._inbox.popleft()):
                self._delivered_at = time.monotonic()
                # What it started itself must be run too, however a drain learns of it.
                self._hungry = self._hungry or self.drain

    def _heed_shutdown(self, moment: float) -> None:
        if self.shutdown.heed(moment):
            logger.info(
                "Worker %s is stopping (running tasks: %d; they have %g s to finish)",
                self.worker,
                len(self.runs),
                task_settings().shutdown_grace_seconds,
            )
        if self.shutdown.interrupts(moment):
            for run in self.runs.going_on:
                run.stop(TaskReleased(), STOP_SECONDS / 2)
        if self.shutdown.releases(moment):
            self.runs.conclude(map(cut_short, self.runs.going_on))

    def _make_stop(self, moment: float) -> None:
        """Take the next steps with what must stop, and with what keeps others from working."""
        self.runs.conclude(enforce(self.runs.going_on, self.pool, moment))
        free_lock(self._connection.trouble, self.runs.going_on, moment)
        if self.exit is Exit.DONE and (
            self.fitness.spoilt or wants_restart(self.worker, self.pool, len(self.runs))
        ):
            self.exit = Exit.RECYCLE

    def _recall_unbegun(self, moment: float) -> None:
        """Hand back what waits here while every hand is busy: another worker may be free."""
        if self._leaving or self.fitness.fault or moment >= self._recall_at(moment):
            self.runs.conclude(Outcome(run, Verb.RELEASE) for run in self.pool.recall())

    def _recall_at(self, moment: float) -> float:
        busy = len(self.runs) - len(self.runs.outcomes)
        return recall_at(self.threads, self.runs.values(), busy, self._delivered_at, moment)

    def _hand_out(self, tasks: list[Task]) -> None:
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
            tell(run, verb, value)

    def _wait_out(self, error: Exception, begun: float | None = None) -> None:
        self._connection.wait_out(error, len(self.runs.outcomes), begun)
        # The first look afterwards finds what was committed without an answer.
        self._beat_at = 0.0

    def _abandon(self, error: DatabaseReplaced) -> None:
        """Begin nothing more and tell what was not written: nobody else has this database."""
        self.exit = Exit.REPLACED
        logger.critical("Worker %s ends at once with code %d: %s", self.worker, self.exit, error)
        self.pool.recall()
        self._collect()
        forsake(self.runs)

    def _leave(self) -> None:
        self.pool.close()
        self.threads_left = not self.pool.join() or self.pool.stuck > 0
        if self.exit is Exit.UNRELEASED:
            # A thread that keeps the database from it may also keep Python from ending.
            self.threads_left = True
            return
        if self.exit is Exit.REPLACED:
            # To end in good order would close the connection, and SQLite then deletes the log of
            # whatever database stands at the path by now.
            self.threads_left = True
            return
        try:
            self._connection.reopen()
            with transaction.atomic(using=self.using):
                presence.leave(self.worker, begin(self.using), stuck=self.pool.stuck)
        except TROUBLE as error:
            logger.warning("The worker could not sign off: %s", explained(error))
