"""The registry of task classes, and finding a class by a name that a user typed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from project.airports.tasks import ExportAirports, ImportAirports, SiteTask
from tasks_app.checks import check_tasks
from tasks_app.exceptions import UnknownTask
from tasks_app.tasks import registry
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tests import more_tasks
from tests.tasks import Add, Noop

GOOD = """
from tasks_app.tasks.base import BaseTask

class Sweep(BaseTask):
    startable = True

    def execute(self, progress):
        pass

class Base(BaseTask):
    startable = True
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create an app without tasks in a site, and return the path of its tasks module."""
    (tmp_path / "registry_shop").mkdir()
    (tmp_path / "registry_shop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "registry_shop" / "tasks.py"
    for name in [name for name in sys.modules if name.startswith("registry_shop")]:
        del sys.modules[name]


def installed(**_kwargs: Any) -> Any:
    return override_settings(INSTALLED_APPS=["registry_shop"])


def names(tasks: list[type[BaseTask]]) -> list[str]:
    return [task.name() for task in tasks]


def test_finds_tasks_of_installed_apps_and_imported_ones() -> None:
    found = registry.tasks()
    assert {ImportAirports, ExportAirports, Noop} <= set(found)
    assert names(found) == sorted(names(found))
    assert len(found) == len(set(found))


def test_base_and_local_classes_are_not_found() -> None:
    class Local(BaseTask):
        def execute(self, progress: ProgressHandle) -> None:
            pass

    assert not {Local, BaseTask, SiteTask} & set(registry.tasks())


def test_module_is_imported_on_the_first_lookup(shop: Path) -> None:
    shop.write_text(GOOD)
    with installed():
        assert "registry_shop.tasks" not in sys.modules
        assert registry.find("registry_shop.tasks.Sweep").__name__ == "Sweep"
        assert "registry_shop.tasks.Sweep" in names(registry.startable_tasks())
        assert "registry_shop.tasks.Base" not in names(registry.startable_tasks())


def test_app_without_tasks_is_no_problem(shop: Path) -> None:
    with installed():
        assert registry.problems() == {}


def test_class_of_a_reloaded_module_is_found_once(shop: Path) -> None:
    shop.write_text(GOOD)
    with installed():
        first = registry.find("Sweep")
        del sys.modules["registry_shop.tasks"]
        second = registry.find("Sweep")
        assert first is not second
        assert [task for task in registry.tasks() if task.__name__ == "Sweep"] == [second]


def test_startable_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Noop not in registry.startable_tasks()
    monkeypatch.setattr(Noop, "startable", True)
    assert Noop in registry.startable_tasks()


def test_broken_module_is_reported_and_others_still_work(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop.write_text(GOOD + "\nimport not_installed_anywhere\n")
    with override_settings(INSTALLED_APPS=["registry_shop", "project.airports"]):
        with caplog.at_level(logging.ERROR, logger="tasks_app.registry"):
            assert registry.problems() == {
                "registry_shop.tasks": (
                    "ModuleNotFoundError: No module named 'not_installed_anywhere'"
                )
            }
        assert "registry_shop.tasks cannot be imported" in caplog.text
        assert ImportAirports in registry.tasks()
        # The import of its module failed, so no worker could import it.
        assert not [task for task in registry.tasks() if task.__name__ == "Sweep"]
        with pytest.raises(UnknownTask, match="No module named 'not_installed_anywhere'"):
            registry.find("registry_shop.tasks.Sweep")
        # Now the import succeeds.
        shop.write_text(GOOD + "\n# mended, and of another length\n")
        assert registry.problems() == {}
        assert registry.find("Sweep")


def test_import_error_is_logged_once(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    def logged_errors(source: str) -> list[str]:
        """Return what three lookups log about a module."""
        caplog.clear()
        shop.write_text(source)
        for _ in range(3):
            registry.problems()
            sys.modules.pop("registry_shop.tasks", None)
        return [str(record.exc_info and record.exc_info[1]) for record in caplog.records]

    with installed(), caplog.at_level(logging.ERROR, logger="tasks_app.registry"):
        assert logged_errors("raise OSError(1)") == ["1"]
        assert logged_errors("raise OSError('another, of another length')") == [
            "another, of another length"
        ]
        assert logged_errors("# mended, and of a third length") == []
        assert logged_errors("raise OSError('another, of another length')") == [
            "another, of another length"
        ]


@pytest.mark.parametrize("name", ["tests.tasks.Add", "Add"])
def test_finds_by_path_or_class_name(name: str) -> None:
    assert registry.find(name) is Add


def test_path_finds_a_task_that_is_not_imported_yet() -> None:
    """As in a worker, the path of any importable module is enough."""
    sys.modules.pop("benchmarks.tasks", None)
    assert registry.find("benchmarks.tasks.Ticks").name() == "benchmarks.tasks.Ticks"


def test_ambiguous_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Add(BaseTask):
        def execute(self, progress: ProgressHandle) -> None:
            pass

    Add.__module__, Add.__qualname__ = more_tasks.__name__, "Add"
    monkeypatch.setattr(more_tasks, "Add", Add, raising=False)
    with pytest.raises(
        UnknownTask,
        match=r"'Add': several tasks have this name: tests\.more_tasks\.Add, tests\.tasks\.Add",
    ):
        registry.find("Add")
    assert registry.find("tests.more_tasks.Add") is Add


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ImportAirport", "the nearest are project.airports.tasks.ImportAirports"),
        ("importairports", "the nearest are project.airports.tasks.ImportAirports"),
        (
            "project.tasks.ImportAirports",
            "No module named 'project.tasks'; the nearest are project.airports.tasks.Import",
        ),
        ("Stubborm", "the nearest is tests.tasks.Stubborn"),
        ("xyzzy", "no task has a similar name"),
        ("", "no task has a similar name"),
        ("no.such.thing_at_all", "No module named 'no'"),
        ("tests.tasks.Path", "it is a 'type', not a subclass of BaseTask"),
    ],
)
def test_unknown_name_error_suggests_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownTask) as raised:
        registry.find(name)
    assert f"There is no task {name!r}: {message}" in str(raised.value)


def test_find_is_restricted_to_the_given_classes() -> None:
    """A form that can start only some tasks must not reveal the others."""
    among = [ImportAirports, Noop]
    assert registry.find("ImportAirports", among) is ImportAirports
    for name in ("ExportAirports", "project.airports.tasks.ExportAirports", "tests.tasks.Add"):
        with pytest.raises(UnknownTask) as raised:
            registry.find(name, among)
        assert "project.airports.tasks.ExportAirports" not in raised.value.why
        assert "tests.tasks.Add" not in raised.value.why


def shop_messages() -> list[tuple[str | None, str]]:
    """Return what check reports about the shop. Other tests define broken classes too."""
    return [
        (found.id, found.msg)
        for found in check_tasks(None)
        if "registry_shop" in f"{found.msg} {found.hint}"
    ]


def test_check_reports_classes_that_cannot_run(shop: Path) -> None:
    shop.write_text(
        "from tasks_app.tasks.base import BaseTask\n"
        "from tests.tasks import Order\n"
        "class Forgets(BaseTask): Params = Order\n"
        "class Base(BaseTask): max_attempts = 0\n"
        "class Sweep(Base):\n"
        "    def execute(self, progress): ...\n"
        "class Forgotten(BaseTask): ...\n"
        "class Other(Forgets):\n"
        "    def execute(self, progress, number, more): ...\n"
    )
    with installed():
        assert names(registry.unfinished()) == ["registry_shop.tasks.Forgotten"]
        assert shop_messages() == [
            (
                "tasks_app.W021",
                "registry_shop.tasks.Forgotten has no execute(), and no subclass.",
            ),
            (
                "tasks_app.W023",
                "Other.execute does not take the fields of Order: missing a required "
                "argument: 'more'. Name each of them, or take them all as **params.",
            ),
            (
                "tasks_app.W022",
                "registry_shop.tasks.Sweep.max_attempts: Input should be greater than or equal "
                "to 1.",
            ),
        ]


def test_check_reports_a_module_that_cannot_be_imported(shop: Path) -> None:
    shop.write_text(
        "from tasks_app.tasks.base import BaseTask\n"
        "class Sweep(BaseTask):\n"
        "    max_attempt = 3\n"
        "    def execute(self, progress): ...\n"
    )
    with installed():
        [(code, message)] = shop_messages()
    assert code == "tasks_app.W020"
    assert message.startswith(
        "registry_shop.tasks cannot be imported: InvalidTask: Sweep has no option 'max_attempt'. "
        "Did you mean 'max_attempts'?"
    )
