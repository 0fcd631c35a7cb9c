"""The task classes that a site has, by name.

Doors ask it what may be started, and what a name that somebody typed means. A worker does not: it
imports the dotted path that a row holds.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module

from django.apps import apps
from django.core.signals import setting_changed
from django.utils.module_loading import module_has_submodule

from tasks_app.base import BaseTask, resolve
from tasks_app.exceptions import InvalidTask, UnknownTask
from tasks_app.imports import in_turn

logger = logging.getLogger("tasks_app.registry")

#: What each app's tasks stand in, so that they are found before anybody has imported them.
MODULE = "tasks"
#: How many names an error offers for one that is not known.
NEAR = 3

#: Why modules could not be imported, as it was logged last: pages ask again and again.
_logged: dict[str, str] = {}


def tasks() -> list[type[BaseTask]]:
    """Return every task class that a worker can import and run, in the order of their names.

    Known are those in the `tasks` modules of installed apps, and those that something else has
    imported in this process. A module that cannot be imported is logged and left out: see
    `problems`.
    """
    problems()
    return sorted((cls for cls in _subclasses(BaseTask) if _runs(cls)), key=lambda cls: cls.name())


def startable_tasks() -> list[type[BaseTask]]:
    """Return those that opt in to be started over HTTP. Who may is `permissions.may_start`."""
    return [cls for cls in tasks() if cls.startable]


def problems() -> dict[str, str]:
    """Import the `tasks` module of each installed app; return which of them cannot be, and why.

    One that failed is tried again each time, for what it lacked may have come, and logged each time
    that it fails for another reason; the others are imported once.
    """
    found: dict[str, str] = {}
    for name in _modules():
        try:
            with in_turn(name):
                import_module(name)
        except (Exception, SystemExit) as error:
            # Somebody else's module: it may raise anything, and its neighbours have done nothing.
            found[name] = f"{type(error).__name__}: {error}"
            if _logged.get(name) != found[name]:
                _logged[name] = found[name]
                logger.exception("The tasks in %s cannot be imported", name)
        else:
            _logged.pop(name, None)
    return found


def unfinished() -> list[type[BaseTask]]:
    """Return classes of the apps' `tasks` modules that nothing can run: no `execute`, no child."""
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
    """Return the task class of a dotted path, or of a class name that only one has.

    `among` are those that may be found, and offered where nothing is; left out, all of them, and
    whatever a dotted path leads to. Raises UnknownTask, naming the nearest, or those that bear the
    name alike.
    """
    known = {cls.name(): cls for cls in (tasks() if among is None else among)}
    if name in known:
        return known[name]
    alike = sorted(path for path, cls in known.items() if cls.__name__ == name)
    if len(alike) == 1:
        return known[alike[0]]
    if alike:
        raise UnknownTask(name, f"several bear this name: {', '.join(alike)}")
    nearest = _nearest(name, known)
    near = f"the nearest {'are' if len(nearest) > 1 else 'is'} {', '.join(nearest)}"
    if among is None and "." in name:
        try:
            return resolve(name)
        except UnknownTask as error:
            why = f"{error.why}; {near}" if nearest else error.why
            raise UnknownTask(name, why) from error
    raise UnknownTask(name, near if nearest else "none has a name like this")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return paths whose class has a name like this one's, the nearest first."""
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
    """Whether a worker that imports its name finds this class, with something to execute.

    Not those made in a function, those of a module that failed halfway, nor mere bases.
    """
    if not _is_importable(cls) or cls.execute is BaseTask.execute:
        return False
    try:
        cls.name()
    except InvalidTask:
        return False  # Its path is too long for a row. Whoever starts it is told so.
    return True


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "INSTALLED_APPS":
        _modules.cache_clear()
        _logged.clear()


setting_changed.connect(_forget, dispatch_uid="tasks_app.registry")
