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
from tasks_app.ledger import alias
from tasks_app.management.command import CHECKS
from tasks_app.management.reloading import CHANGED, Once, is_child, keep_running, work_until_changed
from tasks_app.management.signals import end_at_once, ended_soon, heard, write_at_once
from tasks_app.management.terminal import in_range, utf8
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.run import NEVER
from tasks_app.worker.shutdown import Exit
from tasks_app.worker.watchdog import Watchdog

#: What the records of this app are at -v 2 and -v 3.
LEVELS = {2: logging.INFO, 3: logging.DEBUG}
#: Why a worker ended, where it was not told to.
REASONS = {
    Exit.REPLACED: "the database file was replaced",
    Exit.UNRELEASED: "the database did not take back its tasks",
    Exit.RECYCLE: "its process needs to be replaced",
}


def queue_names(text: str) -> list[str]:
    """Read names between commas: at least one, for no name at all would mean every queue."""
    names = [name.strip() for name in utf8(text).split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names no queue; leave it out to take tasks from all")
    return names


class Command(BaseCommand):
    requires_system_checks = CHECKS
    help = (
        "Runs background tasks until it is stopped. SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGQUIT: "
        "claims no more and ends when the running tasks have, or have been released after "
        "TASK_SHUTDOWN_GRACE_SECONDS; a second signal ends at once. -v 0 says nothing of its own, "
        "-v 1 that it starts and ends, -v 2 also what becomes of each task, -v 3 all that its log "
        "has. Exits with 0 in good order, 2 on wrong input, 72 where the database file was "
        "replaced, 74 where the database did not take the release of its tasks, 75 where too many "
        "threads are stuck, 134 (SIGABRT) where code held the interpreter's lock for a lease."
    )

    def run_from_argv(self, argv: list[str]) -> None:
        with ended_soon():
            super().run_from_argv(argv)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--max-workers", type=int, help="Tasks to run at a time. Default: TASK_MAX_WORKERS."
        )
        parser.add_argument(
            "--queues",
            type=queue_names,
            help="Comma-separated queues to take tasks from. Default: all of them.",
        )
        parser.add_argument(
            "--drain", action="store_true", help="Run what is ready, then exit with 0."
        )
        parser.add_argument("--max-tasks", type=int, help="Exit after so many tasks.")
        parser.add_argument(
            "--reload",
            action="store_true",
            help="For development: start anew when code changes, after the running tasks have "
            "ended or been released.",
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
            if not coordinator.hands_left:
                raise
            # Python would say so after it has waited for them.
            traceback.print_exc()
            end_at_once(1)
        self.say(self.ending())
        code = CHANGED if changed else coordinator.exit
        if coordinator.hands_left:
            end_at_once(code)
        if code:
            sys.exit(code)

    def say(self, text: str) -> None:
        """Write to stdout, whatever LOGGING says; unless asked not to, or nobody reads it."""
        if not self.verbosity:
            return
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError:
            # Its terminal was closed. What is in the buffer must go somewhere, or Python complains
            # at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def stop(self, number: int) -> None:
        """Hear a signal: the first lets running tasks end."""
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
    """Say what a worker is, what it does, and how to stop it."""
    connection = connections[coordinator.using]
    settings = connection.settings_dict
    host = f" on {settings['HOST']}" if settings["HOST"] else ""
    queues = ", ".join(coordinator.queues) if coordinator.queues else "all"
    return "\n".join(
        [
            f"Worker {socket.gethostname()}:{os.getpid()} of django-tasks-app {version()}",
            f"Database: {connection.display_name} {settings['NAME']}{host} ({alias()!r})",
            f"Threads: {coordinator.hands}. Queues: {queues}.",
            "Runs what is ready, then stops."
            if coordinator.drain
            else "Stop it with Ctrl-C: running tasks may finish. -v 2 shows each task.",
        ]
    )


def version() -> str:
    try:
        return metadata.version("django-tasks-app")
    except metadata.PackageNotFoundError:
        return "(not installed)"  # Its folder lies within the site.


def spoken(seconds: float) -> str:
    """Return a time as people say it, such as 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds:.1f} s"


@contextmanager
def logged(stream: Any, verbosity: int) -> Iterator[None]:
    """Write the records of this app to a stream, from the level that the verbosity asks for.

    On a console it leaves out the records that a handler of the site's writes there.
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
    """Whether a stream is the stdout or stderr of this process."""
    try:
        return stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False  # It is closed, or has no file.


def written_by_site(record: logging.LogRecord, own: logging.Handler) -> bool:
    """Whether another handler than our own writes a record to the console."""
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
