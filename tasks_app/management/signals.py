"""Signals that stop a worker's process, and how the process ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

#: Signals that end a process: from a supervisor, Ctrl-C, a closed terminal, Ctrl-\, and those that
#: some container images send.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")

#: Threads that tasks left behind may delay the end of the process by this many seconds.
END_SECONDS = 2.0


def end_at_once(code: int) -> NoReturn:
    """End the process immediately, even if threads still run tasks.

    They are daemon threads, but at exit Python waits for the threads of every ThreadPoolExecutor,
    and a task may be stuck in one. A worker that has signed off must make room for the next one.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # The terminal was closed. The exit code still gives the outcome.
            stream.flush()
    os._exit(code)


@contextmanager
def ended_soon() -> Iterator[None]:
    """End the process soon after this block, even if threads that started in it still run.

    At exit, Python waits for the threads of every ThreadPoolExecutor, and a task may have left
    something in one that never ends. Threads and functions registered with atexit have END_SECONDS
    to finish. Use this for the last thing that a process does.
    """
    before = threading.enumerate()
    code = 1

    def end() -> None:
        threading.Event().wait(END_SECONDS)
        end_at_once(code)

    try:
        yield
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    finally:
        if any(thread not in before for thread in threading.enumerate()):
            threading.Thread(target=end, name="end", daemon=True).start()


def write_at_once(stream: Any, text: str) -> None:
    """Write to the file of a stream, bypassing its buffer, as a signal handler must.

    The handler may interrupt a write of the same thread to the same stream, which is not reentrant.
    Does nothing if there is no file, or if its reader is gone.
    """
    with suppress(OSError, AttributeError):
        os.write(stream.fileno(), text.encode("ascii", "replace"))


#: Functions that a process forked from this one calls first.
_in_forks: list[Callable[[], None]] = []


def _after_fork() -> None:
    for restore in _in_forks:
        restore()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def heard(hear: Callable[[int], None]) -> Iterator[None]:
    """Call `hear` for signals that would end the process. Processes that a task forks end as usual.

    SIGHUP stays ignored if it was ignored, as under nohup. Python runs signal handlers in the main
    thread only, so in another thread this does nothing.
    """
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    ignored = {
        number
        for number in numbers
        if number not in (signal.SIGTERM, signal.SIGINT)
        and signal.getsignal(number) is signal.SIG_IGN
    }
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _frame: hear(number))
        for number in numbers
        if number not in ignored
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # A forked process restores the handlers first. It may hang on a lock that another thread held
    # during the fork. Then only a signal that needs no Python code can end it.
    _in_forks.append(restore)
    try:
        yield
    finally:
        _in_forks.remove(restore)
        restore()
