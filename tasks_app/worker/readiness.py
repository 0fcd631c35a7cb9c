"""Checks that a worker's process is ready: task modules are imported, and the process works."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from django.db import connections

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.tasks import registry
from tasks_app.tasks.imports import TURN_SECONDS
from tasks_app.worker.runs import NEVER
from tasks_app.worker.stopping import ExitCode

logger = SafeLogger("tasks_app.worker")


class Preload:
    """Imports the `tasks` modules of installed apps in a separate thread.

    So the heartbeat continues during the imports. `on_done` is called in that thread when it is
    done. The worker waits for it at most TURN_SECONDS.
    """

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._done = False
        self._given_up = False
        self._deadline = time.monotonic() + TURN_SECONDS
        threading.Thread(target=self._run, name="imports", daemon=True).start()

    def holds_up(self, now: float) -> bool:
        """Return whether tasks must not be claimed yet."""
        if now >= self._deadline and not self._done and not self._given_up:
            self._given_up = True
            logger.warning(
                "Importing the task modules takes longer than %g s; tasks are claimed now",
                TURN_SECONDS,
            )
        return not self._done and not self._given_up

    @property
    def deadline(self) -> float:
        """The time to call `holds_up` again, by the monotonic clock."""
        return NEVER if self._done or self._given_up else self._deadline

    def _run(self) -> None:
        try:
            registry.problems()
        finally:
            connections.close_all()  # A module may query the database when it is imported.
            self._done = True
            self._on_done()


def _open_file() -> None:
    os.close(os.open(os.devnull, os.O_RDONLY))


def _start_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _allocate() -> None:
    bytearray(1 << 20)


#: The needs of a process, each with a function that tries it and raises one of LACKS.
NEEDS: dict[str, Callable[[], object]] = {
    "it cannot open a file": _open_file,
    "it cannot resolve its working folder": os.getcwd,
    "it cannot start a thread": _start_thread,
    "it cannot allocate memory": _allocate,
}
#: Only these are tried before each claim: they take a few microseconds.
QUICK = ("it cannot open a file", "it cannot resolve its working folder")
LACKS = (OSError, RuntimeError, MemoryError)
#: The time between two checks of an unfit process; a quarter of a heartbeat if that is less.
LOOK_SECONDS = 1.0
#: After this many good checks in a row the process is fit again: a single one may be luck.
GOOD_LOOKS = 3


class Fitness:
    """Checks that the process can still do what it could do when the worker started.

    A task can spoil the process for all tasks that follow: it can leak file descriptors, remove the
    working folder or change the user. Later tasks then fail quickly, so this worker would claim
    more of them than a healthy one. So an unfit worker claims nothing and checks again each second.
    Several good checks in a row make it fit again. If it is unfit for a heartbeat, it asks to be
    replaced. Errors of tasks do not count, nor does what the process could not do at its start.
    """

    def __init__(self) -> None:
        self._user = _user()
        self._needs = {need: attempt for need, attempt in NEEDS.items() if not _lacks(attempt)}
        #: A description of what it lacks; empty while it is fit.
        self.fault = ""
        #: It has been unfit for a heartbeat, so the process must be replaced.
        self.spoilt = False
        #: The time of the next check, by the monotonic clock.
        self.next_look = NEVER
        self._since = 0.0
        self._good_looks = 0

    def look(self, now: float, *, thorough: bool) -> bool:
        """Make the quick checks, or all of them; return whether the worker may claim tasks."""
        if self.fault and now < self.next_look:
            return False
        found = self._look(thorough or bool(self.fault))
        if found and not self.fault:
            self._since = now
            logger.warning("This process cannot run tasks, so it claims none: %s", found)
        self._good_looks = 0 if found else self._good_looks + 1
        if self.fault and self._good_looks >= GOOD_LOOKS:
            self.fault = ""
            logger.info("This process can run tasks again")
        self.fault = found or self.fault
        heartbeat = task_settings().heartbeat_seconds
        self.next_look = now + min(LOOK_SECONDS, heartbeat / 4) if self.fault else NEVER
        if found and now - self._since >= heartbeat and not self.spoilt:
            self.spoilt = True
            logger.error(
                "This process still cannot run tasks, so it ends with code %d once its running "
                "tasks have ended: %s",
                ExitCode.RECYCLE,
                self.fault,
            )
        return not self.fault

    def _look(self, thorough: bool) -> str:
        if _user() != self._user:
            return "it runs as another user than at its start"
        for need, attempt in self._needs.items():
            if (thorough or need in QUICK) and (error := _lacks(attempt)):
                return f"{need} ({error})"
        return ""


def _lacks(attempt: Callable[[], object]) -> str:
    """Try something; return the error, or an empty string."""
    try:
        attempt()
    except LACKS as error:
        return str(error) or type(error).__name__
    return ""


def _user() -> tuple[int, int] | None:
    return (os.geteuid(), os.getegid()) if hasattr(os, "geteuid") else None
