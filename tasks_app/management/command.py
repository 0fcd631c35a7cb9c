"""The base of all task commands: errors end them with a message and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

from django.core.checks import Tags
from django.core.management.base import BaseCommand, CommandParser

from tasks_app.management.terminal import INTERRUPTED, plain_errors, utf8

#: This app's system checks, and others that are not about models. Since Django 6, checks of models
#: query the database; the commands handle a missing database themselves.
CHECKS = [Tags.compatibility, Tags.security]


class TaskCommand(BaseCommand):
    """Ends with an exit code on errors of tasks or the database, closed pipes and Ctrl-C."""

    requires_system_checks = CHECKS

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        # The type of arguments that declare none.
        parser.register("type", None, utf8)
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        for stream in (sys.stdout, sys.stderr):
            # Escape characters that the terminal's encoding lacks.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader, such as `head`, has stopped reading. The rest of the buffer must go
            # somewhere, or Python complains when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    def execute(self, *args: Any, **options: Any) -> str | None:
        with plain_errors():
            try:
                return super().execute(*args, **options)
            finally:
                # Raise BrokenPipeError here, and not when Python exits.
                self.stdout.flush()
