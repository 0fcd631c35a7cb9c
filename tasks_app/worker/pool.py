"""The hands: threads that run user code, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import close_old_connections, connections

from tasks_app.states import Verb
from tasks_app.worker.execution import Outcome, execute, failure
from tasks_app.worker.run import Run


class Pool:
    """A fixed number of threads, each running one task at a time.

    `deliver` is called in the hand's thread with each outcome. The threads are daemons: a task
    that does not stop must not keep the process from ending.
    """

    def __init__(self, hands: int, deliver: Callable[[Outcome], None]) -> None:
        self._deliver = deliver
        self._orders: SimpleQueue[Run | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"hand-{number}", daemon=True)
            for number in range(1, hands + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Run) -> None:
        self._orders.put(run)

    def recall(self) -> list[Run]:
        """Take back the runs that no hand has begun."""
        recalled = []
        with suppress(Empty):
            while (run := self._orders.get_nowait()) is not None:
                recalled.append(run)
        return recalled

    def close(self) -> None:
        """Let the hands go that are free, and the others when they are. Does not wait."""
        for _ in self._threads:
            self._orders.put(None)

    def join(self, seconds: float = 1.0) -> bool:
        """Wait until all hands are gone, for so long at most; return whether they are.

        A task that does not stop keeps its thread until the process ends.
        """
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        try:
            while (run := self._orders.get()) is not None:
                run.began = time.monotonic()
                self._deliver(_run(run))
        finally:
            connections.close_all()


def _run(run: Run) -> Outcome:
    """Run a task between two sweeps of its thread's connections. Never raises."""
    try:
        _sweep()
        outcome = execute(run)
        _sweep()
    except BaseException as error:  # noqa: BLE001 - a hand that dies is lost to the worker
        return Outcome(run, Verb.FAIL, failure(error))
    return outcome


def _sweep() -> None:
    """Leave no connection to the next task that is dead, stale or in the middle of something."""
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            # Once closed, such a wrapper stays broken: the next task gets a new one.
            connection.close()
            del connections[connection.alias]
    close_old_connections()
