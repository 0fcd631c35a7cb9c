"""Task modules are imported one at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks_app.tasks import imports
from tasks_app.tasks.base import resolve
from tasks_app.tasks.imports import in_turn
from tests.tasks import Add

pytestmark = pytest.mark.once

RING = """
from tests.tasks.test_imports import other_begins
other_begins({name!r})
from ring import {other}
from tasks_app.tasks.base import BaseTask

class Task(BaseTask):
    def execute(self, progress):
        return {other}.Task.__name__
"""
begun: set[str] = set()
both = threading.Event()


def other_begins(name: str) -> None:
    """Wait until another thread begins to import the other module, or for half a second."""
    begun.add(name)
    if len(begun) == 2:
        both.set()
    both.wait(0.5)


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create two modules that import each other."""
    begun.clear()
    both.clear()
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "__init__.py").touch()
    for name, other in ("xy", "yx"):
        (tmp_path / "ring" / f"{name}.py").write_text(RING.format(name=name, other=other))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ring"]:
        del sys.modules[name]


@pytest.mark.usefixtures("ring")
def test_threads_never_get_a_partially_imported_module() -> None:
    results: dict[str, object] = {}
    meeting = threading.Barrier(2, timeout=10)

    def load(name: str) -> None:
        meeting.wait()
        try:
            results[name] = resolve(f"ring.{name}.Task")().execute(None)
        except Exception as error:  # noqa: BLE001 - compared below
            results[name] = error

    threads = [threading.Thread(target=load, args=[name]) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {"x": "Task", "y": "Task"}


def test_slow_import_delays_only_modules_that_are_not_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(imports, "TURN_SECONDS", 0.05)
    importing, go_on = threading.Event(), threading.Event()

    def import_slowly() -> None:
        with in_turn("slow_module"):
            importing.set()
            go_on.wait(20)

    thread = threading.Thread(target=import_slowly)
    thread.start()
    assert importing.wait(20)
    try:
        assert resolve("tests.tasks.Add") is Add
        assert caplog.text == ""
        # The import may never end, so others wait only for a limited time.
        with in_turn("another_module"):
            assert "importing another_module beside it" in caplog.text
    finally:
        go_on.set()
        thread.join(20)


def test_module_may_resolve_a_task_during_its_import() -> None:
    with in_turn("outer_module"):
        # It is unfinished itself, so it must not count as complete.
        sys.modules["outer_module"] = sys
        with in_turn("inner_module"):
            assert "outer_module" not in imports._complete
    del sys.modules["outer_module"]
    imports._complete.discard("outer_module")
