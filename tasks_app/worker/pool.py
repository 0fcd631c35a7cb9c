"""The hands: threads that run user code, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import close_old_connections, connections

from tasks_app.worker.execution import Outcome, execute
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

    def join(self, seconds: float) -> bool:
        """Wait until all hands are gone, for so long at most; return whether they are."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        try:
            while (run := self._orders.get()) is not None:
                run.began = time.monotonic()
                # As Django does around a request: a task must not inherit a dead connection.
                close_old_connections()
                outcome = execute(run)
                close_old_connections()
                self._deliver(outcome)
        finally:
            connections.close_all()
