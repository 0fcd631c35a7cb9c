"""Import the site's task modules before the first claim, without holding up the heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from django.db import connections

from tasks_app.logs import SafeLogger
from tasks_app.tasks import registry
from tasks_app.tasks.imports import TURN_SECONDS
from tasks_app.worker.run import NEVER

logger = SafeLogger("tasks_app.worker")


class Preload:
    """Imports the `tasks` modules of installed apps in a thread of its own.

    `tell` is called in that thread when it is done. What takes longer than TURN_SECONDS is not
    waited for.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._done = False
        self._given_up = False
        self._deadline = time.monotonic() + TURN_SECONDS
        threading.Thread(target=self._run, name="imports", daemon=True).start()

    def holds_up(self, now: float) -> bool:
        """Whether tasks must not be claimed yet."""
        if now >= self._deadline and not self._done and not self._given_up:
            self._given_up = True
            logger.warning(
                "Importing the task modules takes longer than %g s; tasks are claimed meanwhile",
                TURN_SECONDS,
            )
        return not self._done and not self._given_up

    @property
    def deadline(self) -> float:
        """When to look again, by the monotonic clock."""
        return NEVER if self._done or self._given_up else self._deadline

    def _run(self) -> None:
        try:
            registry.problems()
        finally:
            connections.close_all()  # A module may ask the database when it is imported.
            self._done = True
            self._tell()
