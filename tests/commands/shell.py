"""The commands as `manage.py` runs them: with its parser's exit codes, and what it prints."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from django.core.management import load_command_class


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs commands in this process, by the door that `manage.py` takes once it is set up."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, name: str, *arguments: str) -> Said:
        code: int | str | None = 0
        try:
            load_command_class("tasks_app", name).run_from_argv(["manage.py", name, *arguments])
        except SystemExit as error:
            code = error.code
        captured = self._capsys.readouterr()
        return Said(int(code or 0), captured.out, captured.err)
