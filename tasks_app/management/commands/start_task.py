"""Start a task, and wait for it if asked to."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from tasks_app.base import UNSET
from tasks_app.management.terminal import (
    INTERRUPTED,
    Exit,
    as_json,
    code_of,
    duration,
    ending,
    find_user,
    plain_errors,
    wait_for,
)
from tasks_app.models import Task
from tasks_app.registry import find
from tasks_app.service import task_service


def parameter(text: str) -> tuple[str, Any]:
    """Read NAME=TEXT, or NAME:=JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name.rstrip(":"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no parameter; write name=text, or name:=JSON such as ids:=[1,2]"
        )
    if not name.endswith(":"):
        return name, value
    try:
        return name[:-1], json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no JSON: {error}") from None


def parameters(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object, such as {{"name": 1}}')
    return found


def timeout(text: str) -> float | None:
    """Read a duration, or `none` for no limit."""
    return None if text == "none" else duration(text)


class Command(BaseCommand):
    help = (
        "Starts a task. With --wait or --follow it ends with the task, and its exit code tells "
        "how: 0 completed, 1 failed, 3 cancelled. Else 0 means that the task waits. 2: wrong "
        "input; 4: an unfinished task has the unique key. Ctrl-C ends the waiting, not the task."
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
        parser.add_argument("--owner", metavar="USER", help="The user whose task it is.")
        parser.add_argument("--queue", help="Default: the class's.")
        parser.add_argument("--priority", type=int, help="Higher runs first. Default: the class's.")
        parser.add_argument(
            "--delay", type=duration, metavar="TIME", help="Not before 90s, 10m, 2h or 1d from now."
        )
        parser.add_argument(
            "--unique-key", metavar="KEY", help="Refuse while an unfinished task has this key."
        )
        parser.add_argument(
            "--idempotency-key", metavar="KEY", help="Find what the owner started by this key."
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
            "--follow", action="store_true", help="The same, and show its progress and its log."
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
        with plain_errors():
            started = task_service.start_task(
                find(name),
                params_json | dict(param),
                owner=find_user(owner) if owner else None,
                run_after=timezone.now() + timedelta(seconds=delay) if delay else None,
                **{option: options[option] for option in chosen},
            )
        task = Task.primary.get(pk=started.task_id)
        if not (wait or follow):
            self._tell(started if as_json else f"Started {task.label}: {task.pk}")
            return
        try:
            task = wait_for(task, follow=follow)
        except KeyboardInterrupt:
            raise CommandError(
                f"No longer waiting. The task goes on; to stop it: cancel_task {task.pk}",
                returncode=INTERRUPTED,
            ) from None
        self._tell(task.info() if as_json else ending(task))
        if (code := code_of(task)) is not Exit.DONE:
            sys.exit(code)

    def _tell(self, what: Any) -> None:
        self.stdout.write(what if isinstance(what, str) else as_json(what))
