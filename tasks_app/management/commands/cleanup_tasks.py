"""Delete finished tasks past their retention, and take back those of lost workers."""

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

from tasks_app import retention
from tasks_app.conf import task_settings
from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import Exit, duration
from tasks_app.states import TERMINAL, Status
from tasks_app.worker.cleanup import PATIENCE_SECONDS, Cleanup, Summary
from tasks_app.worker.trouble import TROUBLE, is_unmigrated


class Command(TaskCommand):
    help = (
        "Deletes finished tasks past their retention (TASK_RETENTION_SECONDS, "
        "TASK_FAILED_RETENTION_SECONDS), in batches, and takes back the tasks of workers that "
        "were lost. Made for cron; safe beside running workers and beside itself. Shows its "
        "progress on a terminal. SIGINT or SIGTERM: ends after the present batch and says what was "
        "done. Exits with 0 when all was done, 2 on wrong input, 75 when the database did not "
        f"answer for {PATIENCE_SECONDS:g} seconds, 130 after SIGINT, 143 after SIGTERM; what was "
        "done until then stays done."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would be deleted, and change nothing."
        )
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="AGE",
            help="Delete what finished longer ago than this (3600, 90m, 12h, 7d), whatever the "
            "settings say.",
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
                f"{told(cleanup.summary)}",
                returncode=Exit.TEMPFAIL,
            ) from error
        self._print(asdict(cleanup.summary) if as_json else told(cleanup.summary))
        if signals:
            sys.exit(128 + signals[0])

    def _print(self, what: dict[str, Any] | str) -> None:
        self.stdout.write(what if isinstance(what, str) else json.dumps(what))


def told(summary: Summary) -> str:
    """Say what was done, and of the rest what there is."""
    parts = [
        f"{'Removed' if summary.complete else 'Stopped before the end: removed'} "
        f"{summary.removed} finished tasks",
        f"took back {summary.taken_back} from lost workers",
        f"removed {summary.workers_removed} records of gone workers",
    ]
    if summary.kept:
        parts.append(f"{summary.kept} tasks could not be removed (see the log)")
    if summary.workers_lost:
        parts.append(f"{summary.workers_lost} workers never signed off")
    return f"{'; '.join(parts)}."


@contextmanager
def stopped_by_signals(cleanup: Cleanup) -> Iterator[list[int]]:
    """Stop it at the first SIGTERM or SIGINT, and yield the list that the number is added to.

    A second signal does what it would without this. Python hears signals in the main thread only.
    """
    heard: list[int] = []
    hears = threading.current_thread() is threading.main_thread()

    def hear(number: int, _frame: object) -> None:
        heard.append(number)
        restore()
        cleanup.stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    numbers = (signal.SIGTERM, signal.SIGINT) if hears else ()
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield heard
    finally:
        restore()


def progress_bar(rule: retention.Rule) -> tqdm[Any]:
    """A bar of the tasks to remove, where somebody sees it."""
    seen = sys.stderr.isatty()
    return tqdm(
        total=retention.count(rule) if seen else None,
        desc="Removing finished tasks",
        unit=" tasks",
        dynamic_ncols=True,
        disable=not seen,
    )
