"""How code that must stop and does not call in is made to stop: by an exception in its thread."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import FrameType

from tasks_app.exceptions import TaskInterrupted

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
        """Raise an exception in the thread, as soon as it next runs Python's own code.

        Returns whether there is nothing left to do: it was raised, or the thread has left. False
        where the thread is in code that must not be interrupted; then ask again. Code that never
        comes back from C, such as a socket without a timeout, is not reached.
        """
        with self._lock:
            if not self.entered or self.interrupted:
                return True
            if _is_shielded(self.thread):
                return False
            self.interrupted = True
            _raise_in(self.thread, kind)
            return True

    def abandon(self) -> bool:
        """Wait for its end no more; return False where it has ended already."""
        with self._lock:
            self.abandoned = self.entered
            return self.abandoned


def _is_shielded(thread: threading.Thread | None) -> bool:
    # Between this look and the exception the thread can go on only if this one is made to pause
    # just here, once in some milliseconds; so what was seen is where it will be raised.
    frame: FrameType | None = sys._current_frames().get(_ident(thread))
    inner = frame
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        # The hand's own frames stand below those of the task, which they only call.
        if name in SHIELDED and (name != "tasks_app" or frame is inner):
            return name != "threading" or frame is inner
        frame = frame.f_back
    return False


def _raise_in(thread: threading.Thread | None, kind: type[BaseException]) -> None:
    """See PyThreadState_SetAsyncExc in Python's C API."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(_ident(thread)), ctypes.py_object(kind)
    )


def _ident(thread: threading.Thread | None) -> int:
    return (thread and thread.ident) or 0
