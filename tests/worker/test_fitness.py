"""Whether a worker's process still has what every task needs."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker.fitness import Fitness
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
    ("spoil", "said"),
    [
        (without_descriptors, "it cannot open a file ("),
        (without_folder, "it cannot resolve its working folder ("),
    ],
)
@pytest.mark.parametrize("thorough", [True, False])
def test_what_a_task_took_from_the_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[], Any],
    said: str,
    thorough: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    fitness = Fitness()
    assert fitness.look(0.0, thorough=thorough)
    with spoil():
        assert not fitness.look(1.0, thorough=thorough)
        assert fitness.fault.startswith(said)
    # It may come back, as descriptors that a task has open.
    assert fitness.look(2.0, thorough=True)
    assert (fitness.fault, fitness.spoilt) == ("", False)


def test_what_lasts_for_a_heartbeat_spoils_it(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 10
    fitness = Fitness()
    with without_descriptors():
        found = []
        for moment in (0.0, 9.0, 10.0):
            fitness.look(moment, thorough=True)
            found.append(fitness.spoilt)
    assert found == [False, False, True]


def test_what_it_lacked_from_the_beginning_is_not_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with without_folder():
        assert Fitness().look(0.0, thorough=True)


@pytest.mark.django_db(transaction=True)
def test_a_spoilt_worker_leaves_tasks_to_others_and_ends(
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
