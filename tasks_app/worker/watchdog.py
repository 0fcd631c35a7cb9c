"""End this process if code holds the interpreter's lock for longer than a lease."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import threading
from pathlib import Path

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.worker import monitor

logger = SafeLogger("tasks_app.worker")

#: A worker is ended after at least this many seconds of silence, however short its leases are.
LEAST_SECONDS = 5.0


class Watchdog:
    """A small process that watches this one; see `monitor`.

    While some code holds the interpreter's lock, this process cannot enforce a timeout, renew a
    lease or handle a signal, so only another process can end it. The watchdog checks the lock and
    nothing else: a separate thread sends the signs of life, also while the coordinator waits for a
    database. It runs on Linux only, because elsewhere a stopped process looks like a hanging one.
    """

    def __init__(self) -> None:
        self._limit = max(task_settings().lease_seconds, LEAST_SECONDS)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if sys.platform != "linux":
            return self
        if os.getpid() == 1:
            # The kernel does not deliver signals of its own container that would end process 1.
            logger.warning(
                "This worker is process 1 of its container, so its watchdog cannot end it if it "
                "hangs, and programs that its tasks leave behind stay as zombies. Give the "
                "container an init, as docker run --init does"
            )
        signs, self._signs = os.pipe()
        # If the monitor is stopped itself, the thread must not wait for it.
        os.set_blocking(self._signs, False)
        command = [sys.executable, "-I", "-S", str(Path(monitor.__file__))]
        try:
            faulthandler.enable()
            self._process = subprocess.Popen(  # noqa: S603 - a file of this package
                [*command, str(os.getpid()), str(self._limit)],
                stdin=signs,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            os.close(self._signs)
            logger.warning("Nothing watches this worker, which may hang forever: %s", error)
        else:
            self._thread = threading.Thread(target=self._live, name="watchdog", daemon=True)
            self._thread.start()
        finally:
            os.close(signs)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        # A process that a task forked may keep the pipe open, so closing it is not enough.
        self._process.kill()
        self._process.wait()
        os.close(self._signs)

    def _live(self) -> None:
        while not self._over.wait(monitor.TICK):
            try:
                os.write(self._signs, b".")
            except BlockingIOError:
                continue
            except OSError:
                logger.warning("Nothing watches this worker any more: its watchdog has ended")
                return
