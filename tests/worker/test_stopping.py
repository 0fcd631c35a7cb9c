"""The steps of a worker's shutdown, and their times."""

from __future__ import annotations

from typing import Any

import pytest

from tasks_app.worker.runs import NEVER
from tasks_app.worker.stopping import RELEASE_SECONDS, STOP_SECONDS, Shutdown


@pytest.fixture(autouse=True)
def grace(settings: Any) -> float:
    settings.TASK_SHUTDOWN_GRACE_SECONDS = 10
    return 10.0


def test_nothing_happens_without_a_signal() -> None:
    shutdown = Shutdown()
    assert not shutdown.requested
    assert not shutdown.handle_signals(100.0)
    assert not shutdown.interrupts(1e9)
    assert not shutdown.releases(1e9)
    assert not shutdown.gives_up(1e9)
    assert shutdown.next_step == NEVER


def test_first_signal_starts_the_grace() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    assert shutdown.requested
    assert shutdown.handle_signals(100.0)
    assert shutdown.next_step == 110.0
    assert not shutdown.interrupts(109.9)
    assert not shutdown.releases(109.9)


def test_first_signal_is_reported_once() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    assert shutdown.handle_signals(100.0)
    assert not shutdown.handle_signals(105.0)
    assert shutdown.next_step == 110.0


def test_after_the_grace_tasks_are_interrupted_once_and_then_released() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.handle_signals(100.0)
    assert shutdown.interrupts(110.0)
    assert not shutdown.interrupts(110.0)
    assert not shutdown.releases(110.0)
    assert shutdown.next_step == 110.0 + STOP_SECONDS
    assert shutdown.releases(110.0 + STOP_SECONDS)
    # No further step until it gives up.
    assert shutdown.next_step == 110.0 + STOP_SECONDS + RELEASE_SECONDS
    assert shutdown.releases(200.0)


def test_second_signal_skips_the_waits() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.handle_signals(100.0)
    shutdown.signal()
    assert not shutdown.handle_signals(101.0)
    assert shutdown.next_step == 101.0
    assert shutdown.interrupts(101.0)
    assert shutdown.releases(101.0)


def test_two_early_signals_end_immediately() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.signal()
    assert shutdown.handle_signals(100.0)
    assert shutdown.interrupts(100.0)
    assert shutdown.releases(100.0)


def test_second_signal_delays_nothing() -> None:
    """Nor does a third one, or a check that finds two signals."""
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.handle_signals(100.0)
    shutdown.signal()
    shutdown.handle_signals(101.0)
    shutdown.handle_signals(103.0)
    shutdown.signal()
    shutdown.handle_signals(104.0)
    assert not shutdown.gives_up(101.0 + RELEASE_SECONDS - 0.1)
    assert shutdown.gives_up(101.0 + RELEASE_SECONDS)


def test_without_grace_tasks_are_interrupted_immediately(settings: Any) -> None:
    settings.TASK_SHUTDOWN_GRACE_SECONDS = 0
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.handle_signals(100.0)
    assert shutdown.interrupts(100.0)
    assert not shutdown.releases(100.0)
    assert shutdown.releases(100.0 + STOP_SECONDS)


def test_release_that_cannot_be_written_is_given_up() -> None:
    shutdown = Shutdown()
    shutdown.signal()
    shutdown.handle_signals(100.0)
    given_up = 110.0 + STOP_SECONDS + RELEASE_SECONDS
    assert not shutdown.gives_up(given_up - 0.1)
    assert shutdown.gives_up(given_up)
