"""The pool of threads that run user code, and nothing else."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import close_old_connections, connections, reset_queries

from tasks_app.exceptions import TaskInterrupted
from tasks_app.states import Verb
from tasks_app.worker.asynchronous import context_of_run
from tasks_app.worker.execution import Outcome, execute, failure, outcome_of
from tasks_app.worker.queries import discard
from tasks_app.worker.run import Run


class Pool:
    """A number of threads, each running one task at a time.

    `deliver` is called by the worker thread with each outcome. The threads are daemons: a task
    that does not stop must not keep the process from ending.
    """

    def __init__(self, threads: int, deliver: Callable[[Outcome], None]) -> None:
        self._deliver = deliver
        self._orders: SimpleQueue[Run | None] = SimpleQueue()
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._stuck: list[threading.Thread] = []
        for _ in range(threads):
            self._add_thread()

    @property
    def stuck(self) -> int:
        """How many threads were given up and still run."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        return len(self._stuck)

    def submit(self, run: Run) -> None:
        self._orders.put(run)

    def abandon(self, run: Run) -> bool:
        """Give up the thread of a run, and put another in its place.

        Returns False where the run has ended just now. What the thread still delivers is dropped,
        and it ends with its task.
        """
        if not run.stretch.abandon():
            return False
        assert run.stretch.thread  # noqa: S101 - a stretch that was entered has one
        self._threads.remove(run.stretch.thread)
        self._stuck.append(run.stretch.thread)
        self._add_thread()
        return True

    def recall(self) -> list[Run]:
        """Take back the runs that no hand has begun."""
        recalled = []
        with suppress(Empty):
            while (run := self._orders.get_nowait()) is not None:
                recalled.append(run)
        return recalled

    def close(self) -> None:
        """Let the threads go that are free, and the others when they are. Does not wait."""
        for _ in self._threads:
            self._orders.put(None)

    def join(self, seconds: float = 1.0) -> bool:
        """Wait until all threads are gone, for so long at most; return whether they are.

        A task that does not stop keeps its thread until the process ends.
        """
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _add_thread(self) -> None:
        name = f"task-thread-{next(self._numbers)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        try:
            while (run := self._orders.get()) is not None:
                run.began = time.monotonic()
                try:
                    outcome = _run(run)
                except BaseException as error:  # noqa: BLE001 - as late as an interruption can come
                    outcome = Outcome(run, Verb.FAIL, failure(error))
                if run.stretch.abandoned:
                    return
                self._deliver(outcome)
        finally:
            connections.close_all()


def _run(run: Run) -> Outcome:
    """Run a task between two sweeps of its thread's connections."""
    outcome = _interruptibly(run)
    try:
        _sweep(interrupted=run.stretch.interrupted)
    except BaseException as error:  # noqa: BLE001 - a hand that dies is lost to the worker
        return Outcome(run, Verb.FAIL, failure(error))
    return outcome


def _interruptibly(run: Run) -> Outcome:
    """Run a task that may be interrupted, once, at any point: also just after it has ended."""
    outcome: Outcome | None = None
    try:
        _sweep()
        run.stretch.enter()
        # What it activates, such as a language or a time zone, is not the next task's.
        with context_of_run() as context:
            context.run(run.stretch.queries.begin)
            outcome = context.run(execute, run)
        run.stretch.leave()
    except TaskInterrupted as late:
        run.stretch.leave()
        return outcome or outcome_of(run, late)
    except BaseException as error:  # noqa: BLE001 - a hand that dies is lost to the worker
        run.stretch.leave()
        return Outcome(run, Verb.FAIL, failure(error))
    return outcome


def _sweep(*, interrupted: bool = False) -> None:
    """Leave no connection to the next task that is dead, stale or in the middle of something."""
    if interrupted:
        discard()
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block or interrupted:
            # Once closed in a transaction, a wrapper stays broken: the next task gets a new one.
            # So does it where an exception came between a query and its answer, perhaps.
            connection.close()
            del connections[connection.alias]
    close_old_connections()
    reset_queries()  # With DEBUG, Django keeps them.
