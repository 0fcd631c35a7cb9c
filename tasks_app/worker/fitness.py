"""Whether a worker's process still has what every task needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.worker.run import NEVER
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
#: How often an unfit process is looked at, or four times in a heartbeat if that is more often.
LOOK_SECONDS = 1.0
#: After so many good looks in a row it is fit again: one may be luck.
GOOD_LOOKS = 3


class Fitness:
    """Compares what the process can do with what it could when the worker started.

    A task can spoil the process for all that follow, as by leaking file descriptors, removing the
    working folder or changing the user. Each of those then fails in no time, and the worker claims
    the next ones faster than a sound worker beside it. So an unfit one claims nothing and looks
    again each second. It is fit again after several good looks in a row, and wants to be replaced
    if it is not for a heartbeat. What the process could not do from the beginning is not held
    against it, nor is any error of a task.
    """

    def __init__(self) -> None:
        self._user = _user()
        self._needs = {what: attempt for what, attempt in NEEDS.items() if not _lacks(attempt)}
        #: What it lacks; nothing while it is fit.
        self.fault = ""
        #: Whether it has lacked it for a heartbeat, so that the process is to be replaced.
        self.spoilt = False
        #: When to look again, by the monotonic clock.
        self.next_look = NEVER
        self._since = 0.0
        self._good_looks = 0

    def look(self, moment: float, *, thorough: bool) -> bool:
        """Try what is quick, or everything; return whether the worker may claim tasks."""
        if self.fault and moment < self.next_look:
            return False
        found = self._look(thorough or bool(self.fault))
        if found and not self.fault:
            self._since = moment
            logger.warning("This process cannot run tasks, so it claims none: %s", found)
        self._good_looks = 0 if found else self._good_looks + 1
        if self.fault and self._good_looks >= GOOD_LOOKS:
            self.fault = ""
            logger.info("This process can run tasks again")
        self.fault = found or self.fault
        heartbeat = task_settings().heartbeat_seconds
        self.next_look = moment + min(LOOK_SECONDS, heartbeat / 4) if self.fault else NEVER
        if found and moment - self._since >= heartbeat and not self.spoilt:
            self.spoilt = True
            logger.error(
                "This process still cannot run tasks, so it ends with code %d once those that it "
                "runs have ended: %s",
                Exit.RECYCLE,
                self.fault,
            )
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
