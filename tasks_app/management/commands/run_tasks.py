"""Run background tasks in this process."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import connections

from tasks_app.conf import task_settings
from tasks_app.management.command import CHECKS
from tasks_app.management.reloading import CHANGED, Once, is_child, keep_running, work_until_changed
from tasks_app.management.signals import end_at_once, ended_soon, heard, write_at_once
from tasks_app.management.terminal import in_range, utf8
from tasks_app.store.ledger import alias
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.runs import NEVER
from tasks_app.worker.stopping import ExitCode
from tasks_app.worker.watchdog import Watchdog

#: The log level at -v 2 and -v 3.
LEVELS = {2: logging.INFO, 3: logging.DEBUG}
#: Reasons why a worker ended without being asked to.
REASONS = {
    ExitCode.REPLACED: "the database file was replaced",
    ExitCode.UNRELEASED: "its tasks could not be released",
    ExitCode.RECYCLE: "its process needs to be replaced",
}


def queue_names(text: str) -> list[str]:
    """Return the names between commas. Requires one, because no name would mean every queue."""
    names = [name.strip() for name in utf8(text).split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names no queue; leave it out to take tasks from all")
    return names


class Command(BaseCommand):
    requires_system_checks = CHECKS
    help = (
        "Runs background tasks until it is stopped. On SIGTERM, SIGINT (Ctrl-C), SIGHUP or "
        "SIGQUIT, it claims no more tasks and ends when the running tasks have ended, or were "
        "released after TASK_SHUTDOWN_GRACE_SECONDS; a second signal ends it immediately. -v 0 "
        "prints nothing, -v 1 its start and end, -v 2 also what happens to each task, -v 3 all of "
        "its log. Exits with 0 after a normal stop, 2 on wrong input, 72 if the database file was "
        "replaced, 74 if its tasks could not be released, 75 if too many threads are stuck, 134 "
        "(SIGABRT) if code held the interpreter's lock for as long as a lease."
    )

    def run_from_argv(self, argv: list[str]) -> None:
        with ended_soon():
            super().run_from_argv(argv)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--max-workers", type=int, help="Threads that run tasks. Default: TASK_MAX_WORKERS."
        )
        parser.add_argument(
            "--queues",
            type=queue_names,
            help="Comma-separated queues to take tasks from. Default: all of them.",
        )
        parser.add_argument(
            "--drain", action="store_true", help="Run the tasks that are ready, then exit with 0."
        )
        parser.add_argument("--max-tasks", type=int, help="Exit after this many tasks.")
        parser.add_argument(
            "--reload",
            action="store_true",
            help="For development: restart when code changes, after the running tasks have ended "
            "or were released.",
        )

    def handle(
        self,
        *,
        max_workers: int | None,
        queues: list[str] | None,
        drain: bool,
        max_tasks: int | None,
        reload: bool,
        verbosity: int,
        **_options: Any,
    ) -> None:
        for option, value in (("--max-workers", max_workers), ("--max-tasks", max_tasks)):
            if value is not None:
                in_range(option, value, 1)
        self.verbosity = verbosity
        if reload and not is_child():
            sys.exit(keep_running(self.say))
        self.coordinator = coordinator = Coordinator(
            task_settings().max_workers if max_workers is None else max_workers,
            queues or [],
            drain=drain,
            max_tasks=max_tasks,
        )
        self.begun = time.monotonic()
        self.once = Once()
        self.say(banner(coordinator))
        changed = False
        try:
            with heard(self.stop), logged(self.stdout, verbosity), Watchdog():
                if reload:
                    changed = work_until_changed(coordinator.run, self.restart)  # type: ignore[arg-type]
                else:
                    coordinator.run()
        except Exception:
            if not coordinator.threads_left:
                raise
            # Python would print it only after waiting for the threads.
            traceback.print_exc()
            end_at_once(1)
        self.say(self.ending())
        code = CHANGED if changed else coordinator.exit
        if coordinator.threads_left:
            end_at_once(code)
        if code:
            sys.exit(code)

    def say(self, text: str) -> None:
        """Write to stdout, unless -v 0 is given. Independent of LOGGING."""
        if not self.verbosity:
            return
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError:
            # The terminal was closed. The rest of the buffer must go somewhere, or Python complains
            # when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def stop(self, number: int) -> None:
        """Handle a signal: after the first one, running tasks may finish."""
        if not self.once.is_new(number):
            return
        first = not self.coordinator.shutdown.requested
        self.coordinator.stop()
        if self.verbosity:
            text = self.stopping() if first else "Stopping at once."
            write_at_once(self.stdout, f"\n{text}\n")

    def stopping(self) -> str:
        running = sum(run.began != NEVER for run in list(self.coordinator.runs.values()))
        if not running:
            return "Stopping."
        grace = task_settings().shutdown_grace_seconds
        tasks = "1 running task has" if running == 1 else f"{running} running tasks have"
        return (
            f"Stopping: {tasks} up to {grace:g} s to finish. "
            f"Press Ctrl-C again, or send another signal, to stop at once."
        )

    def restart(self, path: Path) -> None:
        self.say(f"{path} changed. {self.stopping().replace('Stopping', 'Restarting')}")
        self.coordinator.stop()

    def ending(self) -> str:
        ended = self.coordinator.ended
        reason = REASONS.get(self.coordinator.exit)
        tasks = "1 task" if ended == 1 else f"{ended} tasks"
        seconds = time.monotonic() - self.begun
        why = f", with code {self.coordinator.exit}: {reason}" if reason else ""
        return f"Worker stopped after {spoken(seconds)} and {tasks}{why}."


def banner(coordinator: Coordinator) -> str:
    """Return what the worker is, what it does, and how to stop it."""
    connection = connections[coordinator.using]
    settings = connection.settings_dict
    host = f" on {settings['HOST']}" if settings["HOST"] else ""
    queues = ", ".join(coordinator.queues) if coordinator.queues else "all"
    return "\n".join(
        [
            f"Worker {socket.gethostname()}:{os.getpid()} of django-tasks-app {version()}",
            f"Database: {connection.display_name} {settings['NAME']}{host} ({alias()!r})",
            f"Threads: {coordinator.threads}. Queues: {queues}.",
            "Runs the tasks that are ready, then stops."
            if coordinator.drain
            else "Stop it with Ctrl-C: running tasks may finish. -v 2 shows each task.",
        ]
    )


def version() -> str:
    try:
        return metadata.version("django-tasks-app")
    except metadata.PackageNotFoundError:
        return "(not installed)"  # The package's directory is part of the site.


def spoken(seconds: float) -> str:
    """Return a duration in words, such as 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds:.1f} s"


@contextmanager
def logged(stream: Any, verbosity: int) -> Iterator[None]:
    """Write the log of this app to a stream, from the level for this verbosity.

    On a console, it leaves out records that one of the site's own handlers already writes there.
    """
    if (level := LEVELS.get(verbosity)) is None:
        yield
        return
    logger = logging.getLogger(__name__.partition(".")[0])
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("{asctime} {levelname:7} {message}", style="{"))
    if is_console(stream):
        handler.addFilter(lambda record: not written_by_site(record, handler))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def is_console(stream: Any) -> bool:
    """Return whether a stream is the stdout or stderr of this process."""
    try:
        return stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False  # Closed, or without a file.


def written_by_site(record: logging.LogRecord, own: logging.Handler) -> bool:
    """Return whether another handler than our own writes a record to the console."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger:
        for handler in logger.handlers:
            if handler is own or record.levelno < handler.level:
                continue
            console = isinstance(handler, logging.StreamHandler) and is_console(handler.stream)
            if console and handler.filter(record):
                return True
        logger = logger.parent if logger.propagate else None
    return False
