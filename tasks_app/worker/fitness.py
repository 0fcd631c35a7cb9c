"""Whether a worker's process still has what every task needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.worker.shutdown import Exit

logger = SafeLogger("tasks_app.worker")


def _open_file() -> None:
    os.close(os.open(os.devnull, os.O_RDONLY))


def _start_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _allocate() -> None:
    bytearray(1 << 20)


#: What a process needs, each with how it is tried. What fails raises one of LACKS.
NEEDS: dict[str, Callable[[], object]] = {
    "it cannot open a file": _open_file,
    "it cannot resolve its working folder": os.getcwd,
    "it cannot start a thread": _start_thread,
    "it cannot allocate memory": _allocate,
}
#: Before each claim only these: a few microseconds.
QUICK = ("it cannot open a file", "it cannot resolve its working folder")
LACKS = (OSError, RuntimeError, MemoryError)


class Fitness:
    """Compares what the process can do with what it could when the worker started.

    A task can spoil the process for all that follow, as by leaking file descriptors, removing the
    working folder or changing the user. Each of those then fails in no time, and the worker claims
    the next ones faster than a sound worker beside it. So an unfit one claims nothing; and if it
    still is at its next heartbeat, it wants to be replaced. What the process could not do from the
    beginning is not held against it, nor is any error of a task.
    """

    def __init__(self) -> None:
        self._user = _user()
        self._needs = {what: attempt for what, attempt in NEEDS.items() if not _lacks(attempt)}
        #: What it lacks; nothing while it is fit.
        self.fault = ""
        #: Whether it has lacked it for a heartbeat, so that the process is to be replaced.
        self.spoilt = False
        self._since = 0.0

    def look(self, moment: float, *, thorough: bool) -> bool:
        """Try what is quick, or everything; return whether the worker may claim tasks."""
        if self.fault and not thorough:
            return False
        before, self.fault = self.fault, self._look(thorough)
        if self.fault and not before:
            self._since = moment
            logger.warning("This process cannot run tasks, so it claims none: %s", self.fault)
        elif self.fault and moment - self._since >= task_settings().heartbeat_seconds:
            self.spoilt = True
            logger.error(
                "This process still cannot run tasks, so it ends with code %d once those that it "
                "runs have ended: %s",
                Exit.RECYCLE,
                self.fault,
            )
        elif before and not self.fault:
            logger.info("This process can run tasks again")
        return not self.fault

    def _look(self, thorough: bool) -> str:
        if _user() != self._user:
            return "it runs as another user than at its start"
        for what, attempt in self._needs.items():
            if (thorough or what in QUICK) and (error := _lacks(attempt)):
                return f"{what} ({error})"
        return ""


def _lacks(attempt: Callable[[], object]) -> str:
    """Try it; return what went wrong."""
    try:
        attempt()
    except LACKS as error:
        return str(error) or type(error).__name__
    return ""


def _user() -> tuple[int, int] | None:
    return (os.geteuid(), os.getegid()) if hasattr(os, "geteuid") else None
