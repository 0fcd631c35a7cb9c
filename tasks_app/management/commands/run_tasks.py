"""Run background tasks in this process."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandParser

from tasks_app.conf import task_settings
from tasks_app.management.command import CHECKS
from tasks_app.management.terminal import in_range, utf8
from tasks_app.worker.coordinator import Coordinator


def queue_names(text: str) -> list[str]:
    """Read names between commas: at least one, for no name at all would mean every queue."""
    names = [name.strip() for name in utf8(text).split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names no queue; leave it out to take tasks from all")
    return names


class Command(BaseCommand):
    requires_system_checks = CHECKS
    help = (
        "Runs background tasks until it is stopped. SIGTERM or SIGINT: claims no more and ends "
        "when the running tasks have, or have been released after TASK_SHUTDOWN_GRACE_SECONDS; "
        "a second signal ends at once. Exits with 0 in good order, 2 on wrong input, 74 where the "
        "database did not take the release of its tasks, 75 where too many threads are stuck."
    )

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

    def handle(
        self,
        *,
        max_workers: int | None,
        queues: list[str] | None,
        drain: bool,
        max_tasks: int | None,
        **_options: Any,
    ) -> None:
        for option, value in (("--max-workers", max_workers), ("--max-tasks", max_tasks)):
            if value is not None:
                in_range(option, value, 1)
        coordinator = Coordinator(
            task_settings().max_workers if max_workers is None else max_workers,
            queues or [],
            drain=drain,
            max_tasks=max_tasks,
        )
        try:
            with stopped_by_signals(coordinator):
                coordinator.run()
        except Exception:
            if not coordinator.hands_left:
                raise
            # Python would say so after it has waited for them.
            traceback.print_exc()
            end_at_once(1)
        if coordinator.hands_left:
            end_at_once(coordinator.exit)
        if coordinator.exit:
            sys.exit(coordinator.exit)


def end_at_once(code: int) -> NoReturn:
    """End the process although hands are still at it, whatever would wait for them.

    Hands are daemons, but at its exit Python waits for the threads of every ThreadPoolExecutor, in
    which a task may be stuck; and a worker that has signed off must make room for the next.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


#: What a process that is forked from this one calls first.
_in_forks: list[Callable[[], None]] = []


def _after_fork() -> None:
    for restore in _in_forks:
        restore()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def stopped_by_signals(coordinator: Coordinator) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the worker, and end a process that a task forks as usual.

    Python runs signal handlers in the main thread, so elsewhere this does nothing.
    """
    hears = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if hears else ()

    def hear(_number: int, _frame: object) -> None:
        coordinator.stop()

    before: dict[int, Any] = {number: signal.signal(number, hear) for number in numbers}

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
