"""How code that must stop and does not call in is made to stop: by an exception in its thread."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
from types import FrameType

from tasks_app.exceptions import TaskInterrupted
from tasks_app.worker.asynchronous import outwards, package, working_for
from tasks_app.worker.queries import Queries

#: Code that holds locks which the whole process needs. An exception between taking one and the
#: `try` that gives it back would leave it taken for good: of logging's, nobody could log any more.
SHIELDED = frozenset(
    {"logging", "threading", "queue", "importlib", "_frozen_importlib", "tasks_app"}
)


class Stretch:
    """What a thread spends in the code of one task. Another thread may interrupt it, once.

    `enter` and `leave` belong to the thread itself. After `leave` returned, no exception comes; one
    that was raised a moment before may surface in `leave`, which must then be called again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The thread is at it.
        self.entered = False
        self.thread: threading.Thread | None = None
        self.queries = Queries()
        #: An exception was raised in it.
        self.interrupted = False
        #: Nobody waits for its end any more.
        self.abandoned = False

    def enter(self) -> None:
        with self._lock:
            self.thread = threading.current_thread()
            self.entered = True

    def leave(self) -> None:
        with self._lock:
            self.entered = False
        # What was raised in the last moment surfaces here, where the interpreter looks for it: at
        # each turn of a loop. To take it back instead, by NULL, leaves CPython 3.11 looking for
        # what is not there at every step, and for ever where a tracer runs.
        for _ in range(3):
            pass

    def interrupt(self, kind: type[TaskInterrupted]) -> bool:
        """Cancel the query and the asynchronous code that the thread waits for, or raise in it.

        An exception is raised as soon as the thread next runs Python's own code; code that never
        comes back from C, such as a socket without a timeout, is not reached. Returns whether
        there is nothing left to do: the thread was interrupted, or has left. False where it is in
        code that must not be interrupted; then ask again.
        """
        with self._lock:
            if not self.entered or self.interrupted:
                return True
            frames = sys._current_frames()
            thread, task = working_for(_ident(self.thread), frames)
            if task is None and _is_shielded(frames.get(thread)):
                return False
            self.interrupted = True
            if task is None:
                _raise_in(thread, kind)
            else:
                with suppress(RuntimeError):  # The loop was closed just now.
                    task.get_loop().call_soon_threadsafe(task.cancel)
            self.queries.cancel()
            return True

    def abandon(self) -> bool:
        """Wait for its end no more; return False where it has ended already."""
        with self._lock:
            self.abandoned = self.entered
            return self.abandoned


def _is_shielded(inner: FrameType | None) -> bool:
    # Between this look and the exception the thread can go on only if this one is made to pause
    # just here, once in some milliseconds; so what was seen is where it will be raised.
    waits = inner is not None and _waits(inner)
    for frame in outwards(inner):
        name = package(frame)
        if name not in SHIELDED or (name in ("queue", "threading") and waits):
            continue
        # The worker's own frames stand below those of the task, which they only call.
        if name == "tasks_app" and frame is not inner:
            continue
        return name != "threading" or frame is inner
    return False


def _waits(frame: FrameType) -> bool:
    """Whether a thread waits to be notified, which holds no lock.

    That it may be interrupted there is what the `finally` of Condition.wait is for. It stands
    behind the assignment that is looked for here.
    """
    return frame.f_code is threading.Condition.wait.__code__ and "gotit" in frame.f_locals


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """See PyThreadState_SetAsyncExc in Python's C API."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _ident(thread: threading.Thread | None) -> int:
    return (thread and thread.ident) or 0
