"""Restarting a worker when code changes, by Django's autoreloader."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from django.db import connections
from django.utils import autoreload

from tasks_app.management.signals import heard
from tasks_app.worker.stopping import ExitCode

#: The exit code of a process that wants to be restarted: the one that Django uses.
CHANGED = 3
#: The terminal and the parent process send one signal within this time.
SAME_SIGNAL_SECONDS = 0.5


def is_child() -> bool:
    """Return whether this process is the one that works, and not its parent that restarts it."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


class Once:
    """Treats equal signals within a short time as one, in a child of `keep_running`."""

    def __init__(self) -> None:
        #: The time at which each signal last counted, by the monotonic clock.
        self._times: dict[int, float] = {}

    def is_new(self, number: int) -> bool:
        before, now = self._times.get(number, -SAME_SIGNAL_SECONDS), time.monotonic()
        if is_child() and now - before < SAME_SIGNAL_SECONDS:
            return False
        self._times[number] = now
        return True


class _Watch(autoreload.StatReloader):
    """Calls back for changed files that no other receiver handles, as it does templates."""

    def __init__(self, changed: Callable[[Path], None]) -> None:
        super().__init__()
        self._changed = changed

    def notify_file_changed(self, path: str | os.PathLike[str]) -> None:
        answers = autoreload.file_changed.send(sender=self, file_path=path)
        if not any(answer for _, answer in answers):
            self._changed(Path(path))


def keep_running(say: Callable[[str], None]) -> int:
    """Run this command in a child process, and again after each change of its code.

    Return the child's exit code once it ends for another reason. The child stays in the process
    group of this one, so that Ctrl-Z can stop it and it can read from the terminal, as a debugger
    does. Therefore a signal from the terminal reaches it twice, also through this process: see
    `Once`.
    """
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []
    unsent: list[int] = []

    def hear(number: int) -> None:
        received.append(number)
        if child is None or child.poll() is not None:
            unsent.append(number)
        else:
            child.send_signal(number)

    with heard(hear):
        while not received:
            child = subprocess.Popen(  # noqa: S603 - this very command
                autoreload.get_child_arguments(), env=environment
            )
            # Forward signals that came before the child existed.
            while unsent:
                child.send_signal(unsent.pop(0))
            code = child.wait()
            if received or code == ExitCode.DONE:
                return code
            if code not in (CHANGED, ExitCode.RECYCLE):
                say(f"The worker ended with code {code}. It starts again when its code changes.")
                _wait_for_change(received)
    return 128 + received[0]


def _wait_for_change(received: list[int]) -> None:
    """Wait until a file of the site changes or a signal is received."""
    changed: list[Path] = []
    for _ in _Watch(changed.append).tick():
        if changed or received:
            return


def work_until_changed(work: Callable[[], None], stop: Callable[[Path], None]) -> bool:
    """Run `work` in a thread until it ends. Return whether it ended because the code changed.

    `stop` asks the worker to end in good order. Signals are handled while this waits.
    """
    ended = threading.Event()
    failed: list[BaseException] = []
    changed: list[Path] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            failed.append(error)
        finally:
            connections.close_all()
            ended.set()
            watch.stop()

    def end(path: Path) -> None:
        if not changed:
            changed.append(path)
            stop(path)
        ended.wait()

    watch = _Watch(end)
    autoreload.start_django(watch, run)
    ended.wait()
    if failed:
        raise failed[0]
    return bool(changed)
