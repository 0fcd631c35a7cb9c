"""Functions that the commands share: parsing of arguments, and messages about tasks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError
from django.db import ProgrammingError
from pydantic import BaseModel, ValidationError

from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IdempotencyKeyReused,
    InvalidParams,
    InvalidTask,
    TaskError,
    UnknownTask,
    by_field,
    joined,
)
from tasks_app.models import Task
from tasks_app.schemas import escaped
from tasks_app.states import Status
from tasks_app.worker.trouble import TROUBLE, database_fault, is_unmigrated

if TYPE_CHECKING:
    from tasks_app.permissions import User

T = TypeVar("T")

UNITS = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}
#: The fewest characters of an id that identify a task, if no other task's id starts with them.
PREFIX_MIN = 4
#: The longest duration in days: a century, because dates have an upper limit.
DAYS_MAX = 36_500
#: The most rows that a command prints.
ROWS_MAX = 100_000
#: Columns that may be long. Only `show_task --with-traceback` prints one of them.
UNSHOWN = ("params", "error_traceback")
#: The exit code of a process that SIGINT ended.
INTERRUPTED = 130


class Exit(IntEnum):
    """Exit codes of the commands."""

    DONE = 0
    #: The task failed, or the request could not be carried out.
    FAILED = 1
    #: The input is invalid. The argument parser uses the same code.
    USAGE = 2
    #: The task was cancelled.
    CANCELLED = 3
    #: An unfinished task has the unique key.
    DUPLICATE = 4
    #: The database did not answer or is not migrated. From sysexits.h: a later try may succeed.
    TEMPFAIL = 75


def utf8(text: str) -> str:
    """Return a text, but refuse bytes in another encoding, which databases cannot store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"character {error.start + 1} is not UTF-8; use that encoding"
        ) from None
    return text


def given(text: str) -> str:
    """Return a text that is not empty: an empty one usually comes from a variable that is unset."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty; leave the option out instead")
    return utf8(text)


def in_range(option: str, value: int, least: int, most: int | None = None) -> None:
    """Raise CommandError if a number is out of the option's range."""
    if value < least or (most is not None and value > most):
        rule = f"{least} or more" if most is None else f"from {least} to {most}"
        raise CommandError(f"{option} must be {rule}, not {value}", returncode=Exit.USAGE)


def duration(text: str) -> float:
    """Parse a duration such as 3600, 90m, 12h or 7d. Return seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration; write seconds, or a number with s, m, h or d, such as 7d"
        )
    if seconds > DAYS_MAX * UNITS["d"]:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; give {DAYS_MAX}d at most")
    return seconds


def find_task(text: str) -> Task:
    """Return the task with an id, or with an id that starts like this. Raises CommandError."""
    digits = text.lower().replace("-", "")
    if not digits or set(digits) - set("0123456789abcdef") or len(digits) > 32:
        raise CommandError(
            f"{text!r} is not a task id, which is a UUID such as "
            f"4b989876-840f-48f8-84a9-bfd1b9303794, or its beginning.",
            returncode=Exit.USAGE,
        )
    if len(digits) < PREFIX_MIN:
        raise CommandError(
            f"{text!r} is too short; give at least {PREFIX_MIN} characters of the id.",
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


def find_tasks(texts: Iterable[str]) -> list[Task]:
    """Return the tasks with these ids, each once. Raises CommandError if one is not found.

    So a typo in the last id is reported before anything is done to the first task.
    """
    return list(dict.fromkeys(find_task(text) for text in texts))


def find_user(name: str) -> User:
    """Return the user with this name. Raises CommandError."""
    users = get_user_model()
    try:
        return users._default_manager.get_by_natural_key(name)
    except users.DoesNotExist:
        raise CommandError(f"There is no user {name!r}.", returncode=Exit.USAGE) from None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of tasks and the database into CommandErrors, shown without a traceback."""
    try:
        yield
    except InvalidParams as error:
        faults = "\n".join(f"  {field or 'params'}: {why}" for field, why in error.errors.items())
        message = f"Invalid parameters:\n{faults}"
        raise CommandError(message, returncode=Exit.USAGE) from error
    except DuplicateTask as error:
        which = f" It is task {error.task_id}." if error.task_id else ""
        raise CommandError(f"{error}{which}", returncode=Exit.DUPLICATE) from error
    except AlreadyRetried as error:
        message = f"{error} It is task {error.retried_as}."
        raise CommandError(message, returncode=Exit.FAILED) from error
    except ValidationError as error:
        message = f"Invalid option: {joined(by_field(error.errors()))}"
        raise CommandError(message, returncode=Exit.USAGE) from error
    except (UnknownTask, InvalidTask, IdempotencyKeyReused) as error:
        raise CommandError(str(error), returncode=Exit.USAGE) from error
    except TaskError as error:
        raise CommandError(str(error), returncode=Exit.FAILED) from error
    except (*TROUBLE, ProgrammingError) as error:
        if isinstance(error, ProgrammingError) and not is_unmigrated(error):
            raise  # This is a bug.
        raise CommandError(database_fault(error), returncode=Exit.TEMPFAIL) from error


def each(tasks: Iterable[Task], act: Callable[[Task], T]) -> tuple[list[T], list[CommandError]]:
    """Call `act` for one task after the other. Return the results, and the errors of the others.

    After an error, the next task follows, unless the database does not answer.
    """
    done: list[T] = []
    refused: list[CommandError] = []
    for task in tasks:
        try:
            with plain_errors():
                done.append(act(task))
        except CommandError as error:
            refused.append(error)
            if error.returncode == Exit.TEMPFAIL:
                break
    return done, refused


def raise_refusals(refused: list[CommandError]) -> None:
    """Raise the errors, if any, as one CommandError. If all have the same code, it has that too."""
    if refused:
        codes = {error.returncode for error in refused}
        code = Exit.TEMPFAIL if Exit.TEMPFAIL in codes else Exit.FAILED
        message = "\n".join(str(error) for error in refused)
        raise CommandError(message, returncode=codes.pop() if len(codes) == 1 else code)


def reread(task_id: UUID, *left_out: str) -> Task:
    """Return the current state of a task, without some columns. Raises CommandError."""
    try:
        return Task.primary.defer(*left_out).get(pk=task_id)
    except Task.DoesNotExist:
        message = f"Task {task_id} was removed in the meantime."
        raise CommandError(message, returncode=Exit.FAILED) from None


def as_json(data: Any) -> str:
    """Return data as JSON; schemas are dumped."""

    def jsonable(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    # In ASCII, which every encoding has, and without control characters for a terminal.
    return json.dumps(data, default=jsonable)


def code_of(task: Task) -> Exit:
    """Return the exit code of a command that waited for this task."""
    return {Status.COMPLETED: Exit.DONE, Status.CANCELLED: Exit.CANCELLED}.get(
        Status(task.status), Exit.FAILED
    )


def ending(task: Task) -> str:
    """Return how a task ended, in words."""
    match task.status:
        case Status.COMPLETED:
            if task.result is None:
                return "Completed."
            result = json.dumps(task.result, indent=2, ensure_ascii=False)
            return "Completed: " + escaped(result, keep="\n")
        case Status.FAILED:
            return f"Failed: {escaped(f'{task.error_type}: {task.error_message}')}"
        case _:
            return f"{Status(task.status).label}."
