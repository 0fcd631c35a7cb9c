"""Watch a worker from a separate process, and end it if none of its Python code runs any more.

A standalone program, started by `watchdog`. It imports only the standard library, to be small, so
it cannot be one file with `watchdog`. It reads a byte that its worker writes to stdin each second.
The end of stdin means that the worker has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading

#: The seconds between two signs of life, and between two checks of this process.
TICK = 1.0
#: After SIGABRT, a worker has this many ticks to end before it is killed.
KILL_TICKS = 10


class Silence:
    """The time in which a worker could have run Python code, and did not.

    It counts ticks of this process instead of reading a clock. So the time does not count in which
    the machine slept or both processes were frozen. After that the worker has its full time to give
    a sign of life.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._ticks = 0

    def tick(self, *, alive: bool) -> bool:
        """Count a tick; return whether the limit is reached."""
        self._ticks = 0 if alive else self._ticks + 1
        return self._ticks * TICK >= self.limit


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, by SIGSTOP or a debugger, and cannot run anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return True  # Unknown: it has ended, which `watch` notices, or there is no /proc.
    return state in (b"T", b"t")


def watch(worker: int, limit: float, signs: int) -> None:
    """Watch the process that started this one until it ends."""
    silence = Silence(limit)
    # An orphan gets another parent, so this never hits a process that got the same id later.
    while os.getppid() == worker:
        heard = bool(select.select([signs], [], [], TICK)[0])
        if heard and not os.read(signs, 4096):
            return
        if silence.tick(alive=heard or is_stopped(worker)):
            end(worker, limit, signs)
            return


def report(worker: int, limit: float) -> None:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(
            f"Worker {worker}: no Python code has run for {limit:g} s, so some code holds the "
            f"interpreter's lock. It is ended by SIGABRT, which prints the stacks of its threads.\n"
        )
        sys.stderr.flush()


def end(worker: int, limit: float, signs: int) -> None:
    """End a worker by SIGABRT, on which its faulthandler prints the stacks; then by SIGKILL."""
    # In a thread: if no process reads stderr any more, this must not wait.
    threading.Thread(target=report, args=[worker, limit], daemon=True).start()
    for tick in range(KILL_TICKS + 1):
        if os.getppid() != worker:
            return
        if tick in (0, KILL_TICKS):
            os.kill(worker, signal.SIGKILL if tick else signal.SIGABRT)
        select.select([], [], [], TICK)


if __name__ == "__main__":
    # These signals are for the worker. This process ends when the worker does.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.stdin.fileno())
