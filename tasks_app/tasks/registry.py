"""The task classes of a site, by name.

Views, commands and the API look up here which tasks may be started, and what class a typed name
means. A worker does not use it: it imports the dotted path in the row.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module

from django.apps import apps
from django.core.signals import setting_changed
from django.utils.module_loading import module_has_submodule

from tasks_app.exceptions import InvalidTask, UnknownTask
from tasks_app.logs import SafeLogger
from tasks_app.tasks.base import BaseTask, resolve
from tasks_app.tasks.imports import in_turn

logger = SafeLogger("tasks_app.registry")

#: The module of each app that is imported to find its tasks.
MODULE = "tasks"
#: The number of similar names in an error about an unknown name.
NEAR = 3

#: The last logged error of each module that fails. Pages ask again and again.
_logged: dict[str, str] = {}


def tasks() -> list[type[BaseTask]]:
    """Return every task class that a worker can import and run, ordered by name.

    These are the classes in the `tasks` modules of installed apps, and those that other code has
    imported in this process. A module that cannot be imported is logged and left out: see
    `problems`.
    """
    problems()
    return sorted((cls for cls in _subclasses(BaseTask) if _runs(cls)), key=lambda cls: cls.name())


def startable_tasks() -> list[type[BaseTask]]:
    """Return the tasks that opt in to being started over HTTP; see `permissions.may_start`."""
    return [cls for cls in tasks() if cls.startable]


def problems() -> dict[str, str]:
    """Import the `tasks` module of each installed app. Return those that fail, and why.

    A module that failed is tried again on each call, because what it needs may exist by then. It is
    logged again only if the reason changed.
    """
    found: dict[str, str] = {}
    for name in _modules():
        try:
            with in_turn(name):
                import_module(name)
        except (Exception, SystemExit) as error:
            # The module may raise anything; the modules of other apps must still be imported.
            found[name] = f"{type(error).__name__}: {error}"
            if _logged.get(name) != found[name]:
                _logged[name] = found[name]
                logger.exception("The tasks in %s cannot be imported", name)
        else:
            _logged.pop(name, None)
    return found


def unfinished() -> list[type[BaseTask]]:
    """Return classes in the apps' `tasks` modules that have no `execute` and no subclass."""
    problems()
    modules = set(_modules())
    return [
        cls
        for cls in _subclasses(BaseTask)
        if cls.__module__ in modules
        and _is_importable(cls)
        and cls.execute is BaseTask.execute
        and not cls.__subclasses__()
    ]


def find(name: str, among: Iterable[type[BaseTask]] | None = None) -> type[BaseTask]:
    """Return the task class with this dotted path, or with this class name if it is unique.

    `among` are the classes to search and to suggest. Without it, all tasks are searched, and a
    dotted path is also imported. Raises UnknownTask, with the most similar names, or with all
    classes that have this name.
    """
    known = {cls.name(): cls for cls in (tasks() if among is None else among)}
    if name in known:
        return known[name]
    alike = sorted(path for path, cls in known.items() if cls.__name__ == name)
    if len(alike) == 1:
        return known[alike[0]]
    if alike:
        raise UnknownTask(name, f"several tasks have this name: {', '.join(alike)}")
    nearest = _nearest(name, known)
    near = f"the nearest {'are' if len(nearest) > 1 else 'is'} {', '.join(nearest)}"
    if among is None and "." in name:
        try:
            return resolve(name)
        except UnknownTask as error:
            why = f"{error.why}; {near}" if nearest else error.why
            raise UnknownTask(name, why) from error
    raise UnknownTask(name, near if nearest else "no task has a similar name")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return paths of classes with a similar name, the most similar first."""
    wanted = name.rpartition(".")[2].lower()
    by_class: dict[str, list[str]] = {}
    for path in known:
        by_class.setdefault(path.rpartition(".")[2].lower(), []).append(path)
    near = difflib.get_close_matches(wanted, by_class, n=NEAR)
    return [path for each in near for path in by_class[each]][:NEAR]


@cache
def _modules() -> list[str]:
    return [
        f"{config.name}.{MODULE}"
        for config in apps.get_app_configs()
        if config.module is not None and module_has_submodule(config.module, MODULE)
    ]


def _subclasses(cls: type[BaseTask]) -> Iterator[type[BaseTask]]:
    seen: set[type[BaseTask]] = set()
    waiting = [cls]
    while waiting:
        for child in waiting.pop().__subclasses__():
            if child not in seen:
                seen.add(child)
                waiting.append(child)
                yield child


def _is_importable(cls: type[BaseTask]) -> bool:
    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


def _runs(cls: type[BaseTask]) -> bool:
    """Return whether a worker that imports the name finds this class, and can execute it.

    False for a class made in a function, for one of a module that failed halfway, and for a mere
    base class.
    """
    if not _is_importable(cls) or cls.execute is BaseTask.execute:
        return False
    try:
        cls.name()
    except InvalidTask:
        return False  # The path is too long for a row. Starting the task raises this error.
    return True


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "INSTALLED_APPS":
        _modules.cache_clear()
        _logged.clear()


setting_changed.connect(_forget, dispatch_uid="tasks_app.registry")
