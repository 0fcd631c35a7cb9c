"""The conditions under which the monitor treats a worker as hanging."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tasks_app.worker.monitor import TICK, Silence, is_stopped
from tests.harness import eventually

pytestmark = pytest.mark.once


def test_silence_counts_from_the_last_sign_of_life() -> None:
    silence = Silence(3 * TICK)
    ticks = [False, False, True, False, False, False]
    assert [silence.tick(alive=alive) for alive in ticks] == [False] * 5 + [True]


def test_stopped_process_differs_from_a_hanging_one() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            assert not is_stopped(process.pid)
            process.send_signal(signal.SIGSTOP)
            eventually(lambda: is_stopped(process.pid), what="it is stopped")
            process.send_signal(signal.SIGCONT)
            eventually(lambda: not is_stopped(process.pid), what="it goes on")
        finally:
            process.kill()
    # An ended process counts as stopped. `watch` detects the end in another way.
    assert is_stopped(process.pid)
