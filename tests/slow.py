"""A pytest plugin that marks the slow tests, which `make test-quick` leaves out.

A test that uses one of the fixtures below is marked. Other tests that start a Python process carry
the marker themselves: a test without it that starts one fails.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

#: Fixtures that start processes. Tests that use them need no marker.
FIXTURES = {"browser", "processes", "readme_shell", "redis_server", "running_postgresql"}

_started: list[str] = []


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event != "subprocess.Popen":
        return
    command = arguments[1]
    # A worker's monitor runs with -S, without installed packages. It starts in a few milliseconds.
    if isinstance(command, list) and sys.executable in command and "-S" not in command:
        _started.append(" ".join(map(str, command)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_configure() -> None:
    sys.addaudithook(_record)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    if _started and item.get_closest_marker("slow") is None:
        pytest.fail(f"The test needs the marker `slow`: it starts {_started[0]}", pytrace=False)
