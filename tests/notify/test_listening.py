"""Waiting for notices while connections break, hang, or arrive too late."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tasks_app.notify import Changes
from tasks_app.notify import outage as outage_module
from tasks_app.notify.listening import Line, Listening
from tasks_app.notify.outage import Outage
from tests.harness import eventually
from tests.notify.listening import LONG, SHORT, logged_outages, seconds, settled


class Wire:
    """A line whose other end the test controls."""

    def __init__(self) -> None:
        self.far, self._near = socket.socketpair()
        self._near.setblocking(False)
        self.closed = False

    def fileno(self) -> int:
        return self._near.fileno()

    def take(self) -> bool:
        try:
            if not self._near.recv(4096):
                raise EOFError("cut")
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self.closed = True
        self.far.close()
        self._near.close()


class Wired(Listening):
    service = "The wire"
    safety_seconds = LONG * 2

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        #: The error that opening raises, if any.
        self.refuse: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()
        super().__init__()

    def open(self) -> Line:
        self.hold.wait()
        if self.refuse:
            raise self.refuse
        self.wires.append(Wire())
        return self.wires[-1]


@pytest.fixture
def wired(settings: Any) -> Iterator[Wired]:
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    with Wired() as changes:
        settled(changes)
        yield changes


def test_notice_ends_a_wait(wired: Wired) -> None:
    wired.wires[0].far.send(b"!")
    assert wired.wait(LONG)
    assert not wired.wait(SHORT)


def test_opening_blocks_neither_waits_nor_close(wired: Wired) -> None:
    wired.hold.clear()
    wired.wires[0].far.close()
    assert wired.wait(LONG)
    for _ in range(5):
        assert seconds(lambda: wired.wait(LONG)) < LONG / 2
    wired.wake()
    assert seconds(lambda: wired.pause(LONG)) < LONG / 2
    assert seconds(wired.close) < LONG / 2
    wired.hold.set()
    eventually(lambda: all(wire.closed for wire in wired.wires) and len(wired.wires) == 2)


def test_line_that_opened_before_close_is_closed() -> None:
    wired = Wired()
    eventually(lambda: wired._opened)
    wired.close()
    assert wired.wires[0].closed


def test_only_one_line_is_opened_at_a_time(wired: Wired) -> None:
    wired.hold.clear()
    wired.wires[0].far.close()
    for _ in range(5):
        wired.wait(LONG)
    assert sum(thread.name == "tasks-listen" for thread in threading.enumerate()) == 1
    wired.hold.set()
    settled(wired)
    assert len(wired.wires) == 2


def test_changes_during_an_outage_are_noticed(wired: Wired, settings: Any) -> None:
    settings.TASK_POLL_INTERVAL_SECONDS = LONG * 2
    wired.hold.clear()
    wired.wires[0].far.close()
    assert wired.wait(LONG), "a notice may have come just before"
    wired.hold.set()
    wired._outage = Outage("x", "y")  # An outage whose pause is over.
    assert eventually(lambda: wired.wait(SHORT)), "a notice may have been missed"
    assert wired._line


def test_each_outage_is_logged_once(wired: Wired, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tasks_app.notify")
    wired.refuse = OSError("no way")
    wired.wires[0].far.close()
    for _ in range(20):
        wired.wait(LONG)
    wired.refuse = None
    settled(wired)
    assert logged_outages(caplog) == [
        "The wire does not answer (cut); looking for changes on a timer until it does",
        "The wire answers again",
    ]


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage_module, "time", clock)
    return clock


def pauses(outage: Outage, clock: Clock, strikes: int) -> list[float]:
    result = []
    for _ in range(strikes):
        assert outage.may_try()
        outage.strike(OSError("x"))
        before = clock.now
        while not outage.may_try():
            clock.now += 0.05
        result.append(round(clock.now - before, 1))
        outage._retry_at = 0.0
    return result


def test_retry_interval_grows_to_a_limit(clock: Clock) -> None:
    outage = Outage("x", "y")
    result = pauses(outage, clock, 9)
    assert result == sorted(result)
    assert result[0] <= 0.2
    assert result[-2:] == [5.0, 5.0]


def test_line_that_breaks_immediately_is_not_retried_more_often(clock: Clock) -> None:
    outage = Outage("x", "y")
    for _ in range(10):
        outage.strike(OSError("x"))
        outage.end()
        assert outage.may_try() is False
        clock.now += 5.0
    outage.strike(OSError("x"))
    clock.now += 4.9
    assert not outage.may_try()
    clock.now += 0.2
    assert outage.may_try()
    outage.end()
    clock.now += 60
    outage.strike(OSError("x"))
    clock.now += 0.2
    assert outage.may_try()


def test_only_one_thread_retries_during_an_outage(clock: Clock) -> None:
    outage = Outage("x", "y")
    outage.strike(OSError("x"))
    assert not outage.may_try()
    clock.now += 1
    assert outage.may_try()
    assert not outage.may_try()


def test_descriptor_numbers_above_1023_work(wired: Wired) -> None:
    """For example in a web process with a thousand streams whose line is cut."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    wired.hold.clear()
    wired.wires[0].far.close()
    assert wired.wait(LONG)
    try:
        with ExitStack() as stack:
            while (number := os.open(os.devnull, os.O_RDONLY)) < 1100:
                stack.callback(os.close, number)
            stack.callback(os.close, number)
            wired.hold.set()
            settled(wired)
            assert wired.wires[-1].fileno() > 1023
            wired.wires[-1].far.send(b"!")
            assert wired.wait(LONG)
            assert not wired.wait(SHORT)
            with Changes() as timer:
                timer.wake()
                assert seconds(lambda: timer.pause(LONG)) < LONG / 2
    finally:
        wired.wires[-1].far.close()
        settled(wired)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
