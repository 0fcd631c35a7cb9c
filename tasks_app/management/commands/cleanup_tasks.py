"""Delete finished tasks past their retention, and take back those of lost workers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from tasks_app import retention
from tasks_app.conf import task_settings
from tasks_app.states import TERMINAL, Status
from tasks_app.worker.housekeeping import rescue

UNITS = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}


def duration(text: str) -> float:
    """Read a duration such as 3600, 90m, 12h or 7d, as seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; write seconds, or a number with s, m, h or d, such as 7d"
        )
    return seconds


class Command(BaseCommand):
    help = (
        "Deletes finished tasks past their retention (TASK_RETENTION_SECONDS, "
        "TASK_FAILED_RETENTION_SECONDS), in batches, and takes back the tasks of workers that "
        "were lost. Made for cron; safe beside running workers and beside itself."
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
        if dry_run:
            summary = {"would_remove": retention.count(rule)}
            text = f"Would remove {summary['would_remove']} finished tasks."
        else:
            summary = {
                "taken_back": rescue(),
                "removed": sum(retention.prune(rule)),
                "workers_removed": retention.prune_workers(),
            }
            text = (
                f"Removed {summary['removed']} finished tasks; "
                f"took back {summary['taken_back']} from lost workers; "
                f"removed {summary['workers_removed']} records of gone workers."
            )
        self.stdout.write(json.dumps(summary) if as_json else text)
