"""Whether a worker is ready to run tasks."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker import readiness
from tasks_app.worker.readiness import Fitness
from tasks_app.worker.runs import NEVER
from tests.harness import Process, ends, eventually
from tests.rows import saved
from tests.stubborn_tasks import SpoilsProcess
from tests.tasks import Noop
from tests.worker.conftest import Working

pytestmark = pytest.mark.once


@contextmanager
def without_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def without_folder() -> Iterator[None]:
    before, folder = Path.cwd(), Path("gone").absolute()
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_descriptors, "it cannot open a file ("),
        (without_folder, "it cannot resolve its working folder ("),
    ],
)
@pytest.mark.parametrize("thorough", [True, False])
def test_lack_of_a_resource_is_detected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[], Any],
    message: str,
    thorough: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    fitness = Fitness()
    assert fitness.look(0.0, thorough=thorough)
    with spoil():
        assert not fitness.look(1.0, thorough=thorough)
        assert fitness.fault.startswith(message)
    # Descriptors come back, for example, when a task closes its files.
    assert [fitness.look(now, thorough=False) for now in (2.0, 3.0, 4.0)] == [0, 0, 1]
    assert (fitness.fault, fitness.spoilt, fitness.next_look) == ("", False, NEVER)


@pytest.mark.parametrize(
    ("looks", "fit", "spoilt"),
    [
        # Each letter is a check, one per second from the first failure: good or bad.
        ("bbbbbbbbbb", False, False),
        ("bbbbbbbbbbb", False, True),
        # A single check, good or bad, decides nothing.
        ("bgbbbbbgbbb", False, True),
        ("bbgbgggggggb", False, False),
        ("bggg", True, False),
        ("bggbg", False, False),
        ("bbbbbbbbbgggbgg", False, False),
        ("bggbggbggbggg", True, False),
    ],
)
def test_lack_for_a_heartbeat_makes_the_process_unfit(
    looks: str, fit: bool, spoilt: bool, settings: Any
) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 10
    fitness = Fitness()
    for now, look in enumerate(looks):
        with without_descriptors() if look == "b" else nullcontext():
            fitness.look(now, thorough=now == 0)
            # More frequent checks, as in each cycle of a coordinator, give the same result.
            fitness.look(now + 0.5, thorough=True)
    assert (not fitness.fault, fitness.spoilt) == (fit, spoilt)


def test_lack_from_the_start_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with without_folder():
        assert Fitness().look(0.0, thorough=True)


@pytest.mark.django_db(transaction=True)
def test_unfit_worker_leaves_tasks_to_others_and_ends(
    start_worker: Callable[..., Process],
) -> None:
    spoilt = start_worker("--max-workers", "1")
    ends(task_service.start_task(SpoilsProcess).task_id)
    task_service.start_many(Noop, [{}] * 20)
    assert spoilt.wait() == 75
    assert "This process still cannot run tasks" in spoilt.output
    assert set(Task.objects.filter(name=Noop.name()).values_list("status", flat=True)) == {
        Status.PENDING
    }


# Imports before the first claim.


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
