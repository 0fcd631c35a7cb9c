"""Report whether workers are alive and tasks are being run, for probes."""

from __future__ import annotations

import json
import socket
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import Exit, duration, given, in_range
from tasks_app.store.health import Health, Limits, health
from tasks_app.worker.trouble import database_fault


class Command(TaskCommand):
    help = (
        "Reports how many workers are alive, how long the oldest task has waited and how many "
        "threads are stuck. Exits with 0 if all is within the limits, 1 if not or if the database "
        "does not answer, 2 on wrong input. For probes of Docker and Kubernetes, and for cron."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--min-workers",
            type=int,
            default=1,
            help="Fewest workers that must be alive. Default: 1.",
        )
        parser.add_argument(
            "--max-wait",
            type=duration,
            metavar="TIME",
            help="Longest time a ready task may wait (90s, 10m, 2h). Default: no limit.",
        )
        parser.add_argument(
            "--max-stuck",
            type=int,
            default=0,
            help="Most threads that may be stuck, and most tasks that may be overdue for rescue. "
            "Default: 0.",
        )
        parser.add_argument(
            "--queue", type=given, help="Only tasks of this queue, and the workers that take them."
        )
        parser.add_argument(
            "--this-host",
            action="store_true",
            help="Only workers of this host, such as the one in this container, and their tasks.",
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the report as JSON."
        )

    def handle(
        self,
        *,
        min_workers: int,
        max_wait: float | None,
        max_stuck: int,
        queue: str | None,
        this_host: bool,
        as_json: bool,
        **_options: Any,
    ) -> None:
        for option, value in (("--min-workers", min_workers), ("--max-stuck", max_stuck)):
            in_range(option, value, 0)
        try:
            found = health(queue=queue, hostname=socket.gethostname() if this_host else None)
        except (DatabaseError, InterfaceError) as error:
            fault = database_fault(error)
            if as_json:
                self.stdout.write(json.dumps({"healthy": False, "problems": [fault]}))
            raise CommandError(fault, returncode=Exit.FAILED) from error
        problems = found.problems(Limits(min_workers, max_wait, max_stuck))
        if as_json:
            report = {"healthy": not problems, "problems": problems}
            self.stdout.write(json.dumps(report | found.model_dump(mode="json")))
        else:
            self.stdout.write(sentence(found))
        if problems:
            raise CommandError("; ".join(problems), returncode=Exit.FAILED)


def sentence(found: Health) -> str:
    """Return the findings in words."""
    wait = "none"
    if found.oldest_waiting_seconds is not None:
        wait = f"the oldest for {found.oldest_waiting_seconds:.0f} s"
    return (
        f"Workers: {found.workers_alive} alive, {found.workers_lost} lost. "
        f"Tasks: {found.running} running, {found.ready} waiting ({wait}), "
        f"{found.overdue} overdue for rescue. Stuck threads: {found.stuck_threads}."
    )
