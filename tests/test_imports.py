"""One import of task modules at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks_app import imports
from tasks_app.base import resolve
from tasks_app.imports import in_turn
from tests.tasks import Add

pytestmark = pytest.mark.once

RING = """
from tests.test_imports import other_begins
other_begins({name!r})
from ring import {other}
from tasks_app.base import BaseTask

class Task(BaseTask):
    def execute(self, progress):
        return {other}.Task.__name__
"""
begun: set[str] = set()
both = threading.Event()


def other_begins(name: str) -> None:
    """Give another thread the time to begin the other module."""
    begun.add(name)
    if len(begun) == 2:
        both.set()
    both.wait(0.5)


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two modules that import each other, in either order."""
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
def test_threads_never_get_an_unfinished_module() -> None:
    found: dict[str, object] = {}
    meeting = threading.Barrier(2, timeout=10)

    def load(name: str) -> None:
        meeting.wait()
        try:
            found[name] = resolve(f"ring.{name}.Task")().execute(None)
        except Exception as error:  # noqa: BLE001 - compared below
            found[name] = error

    threads = [threading.Thread(target=load, args=[name]) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"x": "Task", "y": "Task"}


def test_a_slow_import_delays_only_what_is_not_loaded(
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
        # It may hang for ever, so others do not wait for ever.
        with in_turn("another_module"):
            assert "importing another_module beside it" in caplog.text
    finally:
        go_on.set()
        thread.join(20)


def test_a_module_may_ask_for_a_task_while_it_is_imported() -> None:
    with in_turn("outer_module"):
        # Unfinished itself, and so not taken for complete.
        sys.modules["outer_module"] = sys
        with in_turn("inner_module"):
            assert "outer_module" not in imports._complete
    del sys.modules["outer_module"]
    imports._complete.discard("outer_module")
