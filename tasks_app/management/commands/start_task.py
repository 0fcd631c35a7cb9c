"""Start a task, and optionally wait for it."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tasks_app.management.command import TaskCommand
from tasks_app.management.terminal import (
    INTERRUPTED,
    UNSHOWN,
    Exit,
    as_json,
    code_of,
    duration,
    ending,
    find_user,
    given,
    reread,
    utf8,
)
from tasks_app.management.waiting import wait_for
from tasks_app.schemas import DEPTH_MAX
from tasks_app.service import task_service
from tasks_app.tasks.base import UNSET
from tasks_app.tasks.registry import find


def parameter(text: str) -> tuple[str, Any]:
    """Parse NAME=TEXT or NAME:=JSON."""
    name, equals, value = utf8(text).partition("=")
    if not equals or not name.rstrip(":"):
        raise argparse.ArgumentTypeError(
            "it needs a name; write name=text, or name:=JSON such as ids:=[1,2]"
        )
    if not name.endswith(":"):
        return name, value
    return name[:-1], read_json(value, f"the value of {name[:-1]!r}")


def parameters(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    found = read_json(utf8(text), "the text")
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('the text is not a JSON object, such as {"name": 1}')
    return found


def read_json(text: str, what: str) -> Any:
    """Parse JSON. An error does not quote the text, which may be secret: cron mails errors."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{what} is not JSON: {error}") from None
    except RecursionError:
        fault = f"{what} is nested too deeply; the limit is {DEPTH_MAX} levels"
        raise argparse.ArgumentTypeError(fault) from None


def timeout(text: str) -> float | None:
    """Parse a duration, or `none` for no limit."""
    return None if text == "none" else duration(text)


class Command(TaskCommand):
    help = (
        "Starts a task. With --wait or --follow, it waits for the task and exits with 0 if the "
        "task completed, 1 if it failed, 3 if it was cancelled. Without them, it exits with 0 once "
        "the task is queued. 2: wrong input, or the idempotency key started something else; 4: an "
        "unfinished task has the unique key; 75: the database did not answer. Ctrl-C stops the "
        "waiting, not the task."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="Dotted path of the task's class, or the class's name.")
        parser.add_argument(
            "--param",
            action="append",
            default=[],
            type=parameter,
            metavar="NAME=TEXT",
            help="A parameter as text, or as JSON by NAME:=JSON. May be given more than once.",
        )
        parser.add_argument(
            "--params-json",
            type=parameters,
            default={},
            metavar="JSON",
            help="Parameters as a JSON object; --param adds to it.",
        )
        parser.add_argument(
            "--owner", type=given, metavar="USER", help="The user who owns the task."
        )
        parser.add_argument("--queue", type=given, help="Default: the class's.")
        parser.add_argument("--priority", type=int, help="Higher runs first. Default: the class's.")
        parser.add_argument(
            "--delay", type=duration, metavar="TIME", help="Not before 90s, 10m, 2h or 1d from now."
        )
        parser.add_argument(
            "--unique-key", metavar="KEY", help="Refuse if an unfinished task has this key."
        )
        parser.add_argument(
            "--idempotency-key", metavar="KEY", help="If the owner used this key, return that task."
        )
        parser.add_argument(
            "--timeout",
            type=timeout,
            default=UNSET,
            metavar="TIME",
            help="How long an attempt may run, or none. Default: the class's.",
        )
        parser.add_argument("--max-attempts", type=int, help="Default: the class's.")
        waiting = parser.add_mutually_exclusive_group()
        waiting.add_argument("--wait", action="store_true", help="Wait until the task has ended.")
        waiting.add_argument(
            "--follow", action="store_true", help="Also wait, and show its progress and its log."
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print the task as JSON."
        )

    def handle(
        self,
        *,
        name: str,
        param: list[tuple[str, Any]],
        params_json: dict[str, Any],
        owner: str | None,
        delay: float | None,
        wait: bool,
        follow: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        chosen = ("queue", "priority", "unique_key", "idempotency_key", "timeout", "max_attempts")
        started = task_service.start_task(
            find(name),
            params_json | dict(param),
            owner=find_user(owner) if owner else None,
            run_after=timezone.now() + timedelta(seconds=delay) if delay else None,
            **{option: options[option] for option in chosen},
        )
        task = reread(started.task_id, *UNSHOWN)
        if not (wait or follow):
            how = "Already started with this key:" if started.replayed else "Started"
            self._print(started if as_json else f"{how} {task.label}: {task.pk}")
            return
        try:
            task = wait_for(task, follow=follow)
        except KeyboardInterrupt:
            raise CommandError(
                f"No longer waiting. The task continues; to stop it: cancel_task {task.pk}",
                returncode=INTERRUPTED,
            ) from None
        self._print(task.info(for_staff=True) if as_json else ending(task))
        if (code := code_of(task)) is not Exit.DONE:
            sys.exit(code)

    def _print(self, data: Any) -> None:
        self.stdout.write(data if isinstance(data, str) else as_json(data))
