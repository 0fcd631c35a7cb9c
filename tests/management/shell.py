"""Run commands as `manage.py` does, and capture exit code and output."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from django.core.management import load_command_class


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs commands in this process, the same way as `manage.py` after its set-up."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, name: str, *arguments: str) -> Outcome:
        code: int | str | None = 0
        try:
            load_command_class("tasks_app", name).run_from_argv(["manage.py", name, *arguments])
        except SystemExit as error:
            code = error.code
        captured = self._capsys.readouterr()
        return Outcome(int(code or 0), captured.out, captured.err)
