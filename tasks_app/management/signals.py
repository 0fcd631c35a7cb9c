"""How a worker's process is told to stop, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

#: What tells a process to end: a supervisor, Ctrl-C, a terminal that closes, Ctrl-\ and what some
#: container images send.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")

#: How long threads that tasks left behind may delay the end of the process.
END_SECONDS = 2.0


def end_at_once(code: int) -> NoReturn:
    """End the process although threads still run tasks, whatever would wait for them.

    They are daemons, but at its exit Python waits for the threads of every ThreadPoolExecutor, in
    which a task may be stuck; and a worker that has signed off must make room for the next.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # Its terminal was closed; the code still tells how it ended.
            stream.flush()
    os._exit(code)


@contextmanager
def ended_soon() -> Iterator[None]:
    """End the process soon after this block, whatever threads that began within it still do.

    At its exit Python waits for the threads of every ThreadPoolExecutor, in one of which a task may
    have left something that does not end. What ends by itself, and what is registered with atexit,
    has END_SECONDS. Meant for what a process does last.
    """
    known = threading.enumerate()
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
        if any(thread not in known for thread in threading.enumerate()):
            threading.Thread(target=end, name="end", daemon=True).start()


def write_at_once(stream: Any, text: str) -> None:
    """Write to the file of a stream, past its buffer, as a signal handler must.

    The handler may have come while the same thread writes to the stream, which cannot be entered
    twice. Does nothing where there is no file, or nobody reads it any more.
    """
    with suppress(OSError, AttributeError):
        os.write(stream.fileno(), text.encode("ascii", "replace"))


#: What a process that is forked from this one calls first.
_in_forks: list[Callable[[], None]] = []


def _after_fork() -> None:
    for restore in _in_forks:
        restore()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def heard(hear: Callable[[int], None]) -> Iterator[None]:
    """Have signals that end a process heard instead; a process that a task forks ends as usual.

    SIGHUP is left alone where it is ignored, as nohup has it. Python runs signal handlers in the
    main thread, so elsewhere this does nothing.
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

    # A forked process restores them at once. It may hang on a lock that another thread held at the
    # fork, and then only a signal that needs no Python code ends it.
    _in_forks.append(restore)
    try:
        yield
    finally:
        _in_forks.remove(restore)
        restore()
