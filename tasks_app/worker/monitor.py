"""Watch a worker from a process of its own, and end it once none of its Python code runs any more.

A program that stands alone: it imports nothing but the standard library, to be small. It reads a
byte of its worker's from stdin once in a while, and learns of its end by the end of that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading

#: How often the worker gives a sign of life, and this process looks, in seconds.
TICK = 1.0
#: How many more ticks a worker has to end by SIGABRT before it is killed.
KILL_TICKS = 10


class Silence:
    """For how long a worker could have run Python code, and did not.

    It counts ticks of this process instead of reading a clock. So neither the sleep of the machine
    nor the time during which both processes were frozen counts, and after either the worker has
    its full time to give a sign of life.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._ticks = 0

    def tick(self, *, alive: bool) -> bool:
        """Count a tick; return whether the limit is reached."""
        self._ticks = 0 if alive else self._ticks + 1
        return self._ticks * TICK >= self.limit


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger, and so cannot run anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return True  # Nothing can be told: it has ended, which `watch` sees, or /proc is missing.
    return state in (b"T", b"t")


def watch(worker: int, limit: float, signs: int) -> None:
    """Watch the process that started this one until it ends."""
    silence = Silence(limit)
    # Whoever is orphaned gets another parent, so this never hits a process that took over the id.
    while os.getppid() == worker:
        heard = bool(select.select([signs], [], [], TICK)[0])
        if heard and not os.read(signs, 4096):
            return
        if silence.tick(alive=heard or is_stopped(worker)):
            end(worker, limit, signs)
            return


def tell(worker: int, limit: float) -> None:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(
            f"Worker {worker}: no Python code has run for {limit:g} s, so some code holds the "
            f"interpreter's lock. It is ended by SIGABRT, which prints the stacks of its threads.\n"
        )
        sys.stderr.flush()


def end(worker: int, limit: float, signs: int) -> None:
    """End a worker by SIGABRT, on which its faulthandler tells the stacks; then by SIGKILL."""
    # In a thread: nobody may read stderr any more, and the worker is to end all the same.
    threading.Thread(target=tell, args=[worker, limit], daemon=True).start()
    for tick in range(KILL_TICKS + 1):
        if os.getppid() != worker:
            return
        if tick in (0, KILL_TICKS):
            os.kill(worker, signal.SIGKILL if tick else signal.SIGABRT)
        select.select([], [], [], TICK)


if __name__ == "__main__":
    # They are meant for the worker, whose end is also the end of this.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.stdin.fileno())
