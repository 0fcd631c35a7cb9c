"""What all commands about tasks are: ended by words and a code, not by a traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

from django.core.checks import Tags
from django.core.management.base import BaseCommand, CommandParser

from tasks_app.management.terminal import INTERRUPTED, plain_errors, utf8

#: Those of this app and what else is no model: since Django 6 models ask the database what it can,
#: which commands are to wait for, or to tell of, in their own words.
CHECKS = [Tags.compatibility, Tags.security]


class TaskCommand(BaseCommand):
    """Has the errors of tasks and of the database, closed pipes and Ctrl-C end it in good order."""

    requires_system_checks = CHECKS

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        # Whatever has no type of its own.
        parser.register("type", None, utf8)
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        for stream in (sys.stdout, sys.stderr):
            # What the encoding of a terminal lacks is shown as its number.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # Who read it has enough, such as `head`. What is still in the buffer must go somewhere,
            # or Python complains of it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    def execute(self, *args: Any, **options: Any) -> str | None:
        with plain_errors():
            try:
                return super().execute(*args, **options)
            finally:
                # Here a closed pipe is heard of, and not after the end.
                self.stdout.flush()
