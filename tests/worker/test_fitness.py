"""Detecting that a worker's process lacks what every task needs."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker.readiness import Fitness
from tasks_app.worker.runs import NEVER
from tests.harness import Process, ends
from tests.stubborn_tasks import SpoilsProcess
from tests.tasks import Noop

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
