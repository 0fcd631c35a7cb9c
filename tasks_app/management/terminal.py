"""What the commands share: reading what somebody typed, and telling them of a task."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError
from django.db import connections
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from tasks_app.changes import watch
from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    InvalidParams,
    InvalidTask,
    TaskError,
    UnknownTask,
)
from tasks_app.health import health
from tasks_app.ledger import alias
from tasks_app.models import Task, TaskEvent
from tasks_app.states import EventType, Status
from tasks_app.worker.run import NEVER
from tasks_app.worker.trouble import TROUBLE

if TYPE_CHECKING:
    from tasks_app.permissions import User

UNITS = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}
#: The fewest characters by which a task may be named, where no other begins with them.
PREFIX_MIN = 4
#: How often it looks at a task, where the database does not say that something happened.
LOOK_SECONDS = 1.0
#: How long a task may wait before it is worth asking whether there is anybody to run it.
ALONE_SECONDS = 3.0
#: Of a process that SIGINT ended.
INTERRUPTED = 130


class Exit(IntEnum):
    """How a command ends, for those who wait for it."""

    DONE = 0
    #: The task failed; or what was asked for was not possible.
    FAILED = 1
    #: What was asked for makes no sense: the argument parser's own code.
    USAGE = 2
    #: The task was cancelled.
    CANCELLED = 3
    #: An unfinished task has the unique key.
    DUPLICATE = 4


def duration(text: str) -> float:
    """Read a duration such as 3600, 90m, 12h or 7d, as seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; write seconds, or a number with s, m, h or d, such as 7d"
        )
    return seconds


def find_task(text: str) -> Task:
    """Return the task of an id, or of its beginning. Raises CommandError."""
    digits = text.lower().replace("-", "")
    if not digits or set(digits) - set("0123456789abcdef") or len(digits) > 32:
        raise CommandError(
            f"{text!r} is no id of a task, which is a UUID such as "
            f"4b989876-840f-48f8-84a9-bfd1b9303794, or its beginning.",
            returncode=Exit.USAGE,
        )
    if len(digits) < PREFIX_MIN:
        raise CommandError(
            f"{text!r} is too short; give {PREFIX_MIN} characters of the id or more.",
            returncode=Exit.USAGE,
        )
    bounds = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = list(Task.primary.filter(pk__range=bounds).order_by("pk")[:2])
    if not found:
        raise CommandError(
            f"There is no task {text}. It may have been removed by clean-up.",
            returncode=Exit.FAILED,
        )
    if len(found) > 1:
        raise CommandError(
            f"Several tasks begin with {text!r}, such as {found[0].pk} and {found[1].pk}. "
            f"Give more of the id.",
            returncode=Exit.USAGE,
        )
    return found[0]


def find_user(name: str) -> User:
    """Return the user of a name. Raises CommandError."""
    users = get_user_model()
    try:
        return users._default_manager.get_by_natural_key(name)
    except users.DoesNotExist:
        raise CommandError(f"There is no user {name!r}.", returncode=Exit.USAGE) from None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Tell of what is wrong with a task by its message, without a traceback."""
    try:
        yield
    except InvalidParams as error:
        faults = "\n".join(f"  {field or 'params'}: {why}" for field, why in error.errors.items())
        message = f"The parameters are wrong:\n{faults}"
        raise CommandError(message, returncode=Exit.USAGE) from error
    except DuplicateTask as error:
        which = f" It is task {error.task_id}." if error.task_id else ""
        raise CommandError(f"{error}{which}", returncode=Exit.DUPLICATE) from error
    except AlreadyRetried as error:
        message = f"{error} It is task {error.retried_as}."
        raise CommandError(message, returncode=Exit.FAILED) from error
    except ValidationError as error:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
        raise CommandError(f"An option is wrong: {faults}", returncode=Exit.USAGE) from error
    except (UnknownTask, InvalidTask) as error:
        raise CommandError(str(error), returncode=Exit.USAGE) from error
    except TaskError as error:
        raise CommandError(str(error), returncode=Exit.FAILED) from error


def as_json(data: Any) -> str:
    """Return data as JSON, where schemas stand for what they hold."""

    def jsonable(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    return json.dumps(data, default=jsonable, ensure_ascii=False)


def shown(text: str) -> str:
    """Return a task's own text as a terminal may be sent it: without control characters."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def code_of(task: Task) -> Exit:
    """Return what a command that waited for a task exits with."""
    return {Status.COMPLETED: Exit.DONE, Status.CANCELLED: Exit.CANCELLED}.get(
        Status(task.status), Exit.FAILED
    )


def ending(task: Task) -> str:
    """Say how a task ended."""
    match task.status:
        case Status.COMPLETED:
            if task.result is None:
                return "Completed."
            return f"Completed: {shown(json.dumps(task.result, indent=2, ensure_ascii=False))}"
        case Status.FAILED:
            return f"Failed: {shown(f'{task.error_type}: {task.error_message}')}"
        case _:
            return f"{Status(task.status).label}."


def wait_for(task: Task, *, follow: bool) -> Task:
    """Return the task once it has ended; meanwhile, if asked to, show how it goes on stderr.

    The database tells of changes where it can, as it does to workers. Where it does not answer,
    the next look may.
    """
    alone_at = time.monotonic() + ALONE_SECONDS
    with watch(alias()) as changes, _Follower(task, enabled=follow) as follower:
        while not task.is_terminal:
            changes.wait(LOOK_SECONDS)
            try:
                task = Task.primary.get(pk=task.pk)
                follower.show(task)
                if time.monotonic() > alone_at and task.status == Status.PENDING:
                    alone_at = NEVER
                    _warn_if_alone()
            except Task.DoesNotExist:
                raise CommandError(
                    f"Task {task.pk} was removed meanwhile.", returncode=Exit.FAILED
                ) from None
            except TROUBLE:
                connections[alias()].close()
    return task


def _warn_if_alone() -> None:
    if health().workers_alive == 0:
        sys.stderr.write("No worker is alive. Start one by manage.py run_tasks\n")


class _Follower:
    """A bar on a terminal, or lines where there is none; and the task's log."""

    def __init__(self, task: Task, *, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = 0
        self._said = ""
        self._bar: tqdm[Any] = tqdm(
            total=100,
            desc=shown(task.label),
            disable=not (enabled and sys.stderr.isatty()),
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def show(self, task: Task) -> None:
        if not self._enabled:
            return
        for line in self._log(task):
            self._say(line)
        if self._bar.disable:
            said = shown(task.progress_text)
            if said and said != self._said:
                value = f"{task.progress:.0%} " if task.progress is not None else ""
                self._say(f"{value}{said}")
            self._said = said
        else:
            self._bar.set_postfix_str(shown(task.progress_text), refresh=False)
            # An attempt that begins anew may go back.
            self._bar.n = round((task.progress or 0.0) * 100)
            self._bar.refresh()

    def _log(self, task: Task) -> Iterator[str]:
        news = TaskEvent.primary.filter(
            task=task, id__gt=self._seen, event_type=EventType.LOG
        ).order_by("id")
        for event in news:
            self._seen = event.pk
            yield shown(f"{event.data['level']}: {event.data['message']}")

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
