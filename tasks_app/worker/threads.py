"""The pool of threads that run user code, and nothing else."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import close_old_connections, connections, reset_queries

from tasks_app.exceptions import TaskInterrupted, UnknownTask
from tasks_app.states import Verb
from tasks_app.tasks.base import BaseTask, resolve
from tasks_app.worker.interruption import context_of_run, discard
from tasks_app.worker.outcomes import failure, outcome_of
from tasks_app.worker.runs import Outcome, Run


class Pool:
    """Threads that each run one task at a time.

    `deliver` is called with each outcome, in the thread that ran the task. The threads are daemons:
    a task that does not stop must not keep the process from ending.
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
        """The number of abandoned threads that still run."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        return len(self._stuck)

    def submit(self, run: Run) -> None:
        self._orders.put(run)

    def abandon(self, run: Run) -> bool:
        """Abandon the thread of a run, and start another in its place.

        Return False if the run has ended a moment ago. Outcomes of the abandoned
        thread are dropped, and the thread ends with its task.
        """
        if not run.section.abandon():
            return False
        assert run.section.thread  # noqa: S101 - a section that was entered has one
        self._threads.remove(run.section.thread)
        self._stuck.append(run.section.thread)
        self._add_thread()
        return True

    def recall(self) -> list[Run]:
        """Take back the runs that no thread has begun."""
        recalled = []
        with suppress(Empty):
            while (run := self._orders.get_nowait()) is not None:
                recalled.append(run)
        return recalled

    def close(self) -> None:
        """Let each thread end once it is free. Does not wait."""
        for _ in self._threads:
            self._orders.put(None)

    def join(self, seconds: float = 1.0) -> bool:
        """Wait at most this long until all threads have ended; return whether they have.

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
                except BaseException as error:  # noqa: BLE001 - the latest possible interruption
                    outcome = Outcome(run, Verb.FAIL, failure(error))
                if run.section.abandoned:
                    return
                self._deliver(outcome)
        finally:
            connections.close_all()


def execute(run: Run) -> Outcome:
    """Run a task to its end, however it ends. Never raises."""
    try:
        # It may have been cancelled while it waited for this thread.
        run.handle.check_cancelled()
        run.cls = _class_of(run.task.name)
        result = run.cls().run(run.handle, run.task.params)
    except BaseException as error:  # noqa: BLE001 - a task's SystemExit must not end its thread
        return outcome_of(run, error)
    finally:
        run.handle.finish()
    return Outcome(run, Verb.COMPLETE, result)


def _class_of(name: str) -> type[BaseTask]:
    """Import a task class. Raises UnknownTask, with what else may be wrong in a worker."""
    try:
        return resolve(name)
    except UnknownTask as error:
        why = (
            f"{error.why}. A worker runs the code it started with: if it is new, restart the worker"
        )
        raise UnknownTask(name, why) from error.__cause__


def _run(run: Run) -> Outcome:
    """Run a task, and clean up its thread's connections before and after."""
    outcome = _interruptibly(run)
    try:
        _clean_connections(interrupted=run.section.interrupted)
    except BaseException as error:  # noqa: BLE001 - the worker cannot replace a thread that dies
        return Outcome(run, Verb.FAIL, failure(error))
    return outcome


def _interruptibly(run: Run) -> Outcome:
    """Run a task that may be interrupted once, at any point, also just after it has ended."""
    outcome: Outcome | None = None
    try:
        _clean_connections()
        run.section.enter()
        # The task may activate a language or a time zone, which must not affect the next task.
        with context_of_run() as context:
            context.run(run.section.queries.begin)
            outcome = context.run(execute, run)
        run.section.leave()
    except TaskInterrupted as late:
        run.section.leave()
        return outcome or outcome_of(run, late)
    except BaseException as error:  # noqa: BLE001 - the worker cannot replace a thread that dies
        run.section.leave()
        return Outcome(run, Verb.FAIL, failure(error))
    return outcome


def _clean_connections(*, interrupted: bool = False) -> None:
    """Close connections of this thread that are dead, stale or inside a transaction."""
    if interrupted:
        discard()
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block or interrupted:
            # A wrapper that was closed inside a transaction stays broken, so the next task gets a
            # new one. The same goes for one that an exception left between a query and its answer.
            connection.close()
            del connections[connection.alias]
    close_old_connections()
    reset_queries()  # With DEBUG, Django keeps them.
