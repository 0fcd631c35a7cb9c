"""Delete finished tasks past their retention, and rescue tasks of lost workers."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from tqdm import tqdm

from tasks_app.conf import task_settings
from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import Exit, duration
from tasks_app.states import TERMINAL, Status
from tasks_app.store import retention
from tasks_app.worker.housekeeping import PATIENCE_SECONDS, Cleanup, CleanupSummary
from tasks_app.worker.trouble import TROUBLE, is_unmigrated


class Command(TaskCommand):
    help = (
        "Deletes finished tasks past their retention (TASK_RETENTION_SECONDS, "
        "TASK_FAILED_RETENTION_SECONDS) in batches, and rescues the tasks of lost workers. Run it "
        "from cron; it is safe beside workers and beside other clean-ups. Shows its progress on a "
        "terminal. On SIGINT or SIGTERM, it stops after the current batch and reports what it did. "
        "Exits with 0 if everything was done, 2 on wrong input, 75 if the database did not "
        f"answer for {PATIENCE_SECONDS:g} seconds, 130 after SIGINT, 143 after SIGTERM. Finished "
        "batches stay done in any case."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Report what would be deleted; change nothing."
        )
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="AGE",
            help="Delete tasks that finished longer ago than this (3600, 90m, 12h, 7d), instead of "
            "using the settings.",
        )
        parser.add_argument(
            "--status",
            action="append",
            choices=sorted(TERMINAL),
            help="Delete only tasks of this status. May be given more than once.",
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the summary as JSON."
        )

    def handle(
        self,
        *,
        dry_run: bool,
        older_than: float | None,
        status: list[str] | None,
        as_json: bool,
        **_options: Any,
    ) -> None:
        conf = task_settings()
        rule = retention.Rule(
            older_than if older_than is not None else conf.retention_seconds,
            older_than if older_than is not None else conf.failed_retention_seconds,
            frozenset(Status(name) for name in status or TERMINAL),
        )
        cleanup = Cleanup(rule)
        try:
            if dry_run:
                found = retention.count(rule)
                text = f"Would remove {found} finished tasks."
                self._print({"would_remove": found} if as_json else text)
                return
            with stopped_by_signals(cleanup) as signals, progress_bar(rule) as bar:
                cleanup.run(bar.update)
        except TROUBLE as error:
            if is_unmigrated(error):
                raise
            raise CommandError(
                f"The database did not answer: {str(error).strip()}. Run it again later. "
                f"{report(cleanup.summary)}",
                returncode=Exit.TEMPFAIL,
            ) from error
        self._print(asdict(cleanup.summary) if as_json else report(cleanup.summary))
        if signals:
            sys.exit(128 + signals[0])

    def _print(self, data: dict[str, Any] | str) -> None:
        self.stdout.write(data if isinstance(data, str) else json.dumps(data))


def report(summary: CleanupSummary) -> str:
    """Return what was done and what is left, in words."""
    parts = [
        f"{'Removed' if summary.complete else 'Stopped early: removed'} "
        f"{summary.removed} finished tasks",
        f"rescued {summary.taken_back} from lost workers",
        f"removed {summary.workers_removed} old worker records",
    ]
    if summary.kept:
        parts.append(f"{summary.kept} tasks could not be removed (see the log)")
    if summary.workers_lost:
        parts.append(f"{summary.workers_lost} workers never signed off")
    return f"{'; '.join(parts)}."


@contextmanager
def stopped_by_signals(cleanup: Cleanup) -> Iterator[list[int]]:
    """Stop the clean-up at the first SIGTERM or SIGINT. Yield a list that receives its number.

    A second signal has its usual effect. Python handles signals in the main thread only.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()

    def hear(number: int, _frame: object) -> None:
        received.append(number)
        restore()
        cleanup.stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield received
    finally:
        restore()


def progress_bar(rule: retention.Rule) -> tqdm[Any]:
    """Return a progress bar of the tasks to remove, shown only on a terminal."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=retention.count(rule) if on_terminal else None,
        desc="Removing finished tasks",
        unit=" tasks",
        dynamic_ncols=True,
        disable=not on_terminal,
    )
