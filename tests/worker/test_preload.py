"""Imports before a worker's first claim."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.worker import readiness
from tests.harness import ends, eventually
from tests.rows import saved
from tests.worker.conftest import Working

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

SLOW = """
import pathlib, time
from tasks_app.tasks.base import BaseTask
while not pathlib.Path({until!r}).exists(): time.sleep(0.01)

class Sweep(BaseTask):
    def execute(self, progress):
        return "swept"
"""


@pytest.fixture
def until(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, transactional_db: None
) -> Iterator[Path]:
    """The file that lets the import of an app's task module finish."""
    settings.TASK_HEARTBEAT_SECONDS = 0.1
    (tmp_path / "preload_shop").mkdir()
    (tmp_path / "preload_shop" / "__init__.py").touch()
    until = tmp_path / "until"
    (tmp_path / "preload_shop" / "tasks.py").write_text(SLOW.format(until=str(until)))
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "preload_shop"]):
        yield until
        until.touch()
    for name in [name for name in sys.modules if name.startswith("preload_shop")]:
        del sys.modules[name]


def wait_for_beats(count: int) -> None:
    for _ in range(count):
        before = Worker.objects.get().heartbeat_at
        eventually(lambda at=before: Worker.objects.get().heartbeat_at > at, what="it beats")


def test_task_modules_are_imported_before_the_first_claim(
    start: Callable[..., Working], until: Path
) -> None:
    waiting = saved(name="preload_shop.tasks.Sweep")
    other = saved(name="tests.tasks.Noop")
    start(threads=2)
    wait_for_beats(3)
    assert set(Task.objects.values_list("status", flat=True)) == {Status.PENDING}
    until.touch()
    assert ends(waiting.pk).result == "swept"
    assert ends(other.pk).status == Status.COMPLETED


def test_hanging_import_does_not_prevent_claims(
    start: Callable[..., Working],
    until: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(readiness, "TURN_SECONDS", 0.2)
    start(threads=1)
    assert ends(saved(name="tests.tasks.Noop").pk).status == Status.COMPLETED
    assert "Importing the task modules takes longer than 0.2 s" in log.text
    until.touch()
