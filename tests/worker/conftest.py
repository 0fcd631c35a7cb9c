from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from tasks_app.models import Worker
from tasks_app.worker.coordinator import Coordinator
from tests.harness import PATIENCE, eventually


class Working:
    """A worker in a thread of this process."""

    def __init__(self, threads: int = 2, **options: Any) -> None:
        self.coordinator = Coordinator(threads, **options)
        self.error: BaseException | None = None
        self.ended: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.worker = eventually(
            lambda: self.error or Worker.objects.order_by("started_at").last(),
            what="the worker registers",
        )

    def _run(self) -> None:
        try:
            self.ended = self.coordinator.run()
        except BaseException as error:  # noqa: BLE001 - raised again by `join`
            self.error = error
        finally:
            connections.close_all()

    def join(self) -> int:
        """Wait for its end, and return the number of ended tasks."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.ended is not None
        return self.ended

    def end(self) -> int:
        """Make it end immediately, as two signals do."""
        self.coordinator.shutdown.signal()
        self.coordinator.stop()
        return self.join()


@pytest.fixture
def start(transactional_db: None) -> Iterator[Callable[..., Working]]:
    started: list[Working] = []

    def working(threads: int = 2, **options: Any) -> Working:
        started.append(Working(threads, **options))
        return started[-1]

    yield working
    for working_ in started:
        working_.end()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "tasks_app")
    return caplog
