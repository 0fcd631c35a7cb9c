"""One run of a task, from its row to its outcome. Runs in a hand's thread."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any, NamedTuple

from tasks_app.base import resolve
from tasks_app.claims import Failure
from tasks_app.exceptions import (
    InvalidParams,
    InvalidResult,
    InvalidTask,
    LeaseLost,
    Retry,
    TaskCancelled,
    TaskInterrupted,
    TaskReleased,
    TaskTimedOut,
    UnknownTask,
    WorkerLost,
)
from tasks_app.schemas import MESSAGE_MAX, TRACEBACK_MAX, TYPE_MAX, clipped, printable
from tasks_app.states import Verb
from tasks_app.worker.run import Run

#: Said of a cancelled run whose thread did not stop.
STUCK = True


class Outcome(NamedTuple):
    """How a run ended: the verb that tells it to the database, and what the verb needs."""

    run: Run
    verb: Verb
    value: Any = None


def execute(run: Run) -> Outcome:
    """Run a task to its end, whatever that is. Never raises."""
    try:
        # It may have been cancelled while it waited for this hand.
        run.handle.check_cancelled()
        run.cls = resolve(run.task.name)
        result = run.cls().run(run.handle, run.task.params)
    except BaseException as error:  # noqa: BLE001 - SystemExit of a task must not end its hand
        return outcome_of(run, error)
    finally:
        run.handle.finish()
    return Outcome(run, Verb.COMPLETE, result)


def outcome_of(run: Run, error: BaseException) -> Outcome:
    """Return what becomes of a run that an error ended."""
    reason = _interruption(error)
    # What is raised in a thread is a bare class; the handle has the words.
    reason = reason and (run.handle.reason or reason)
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL)
    if isinstance(reason, (TaskReleased, LeaseLost)):
        return cut_short(run)
    if _is_retried(run, reason or error):
        return Outcome(run, Verb.RETRY, failure(reason or error))
    return Outcome(run, Verb.FAIL, failure(reason or error))


def given_up(run: Run) -> Outcome:
    """Return the outcome of a run that was told to stop, did not, and is waited for no more."""
    reason = run.handle.reason
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL, STUCK)
    if isinstance(reason, TaskTimedOut):
        # Not tried again, whatever its class says: this attempt may still be doing things.
        return Outcome(run, Verb.FAIL, replace(failure(reason), stuck=True))
    return cut_short(run)


def _is_retried(run: Run, error: BaseException) -> bool:
    """Whether another attempt follows an error: its class says so, and one is left."""
    if run.task.attempt >= run.task.max_attempts:
        return False
    if isinstance(error, Retry):
        return True
    if isinstance(error, UnknownTask):
        return True  # Its code may be on its way here, or on another host.
    if isinstance(error, (InvalidParams, InvalidResult, InvalidTask)):
        return False
    task = run.cls or resolve(run.task.name)
    return isinstance(error, task.retry_on) and not isinstance(error, task.no_retry_on)


def cut_short(run: Run) -> Outcome:
    """Return the outcome of a run that the worker's shutdown cut short."""
    # One whose class is not imported has not begun; if it cannot be, the next worker reports that.
    if run.cls is None or run.cls.restart_on_shutdown:
        return Outcome(run, Verb.RELEASE)
    message = "The worker was shut down, and this task does not start again by itself."
    return Outcome(run, Verb.FAIL, Failure(WorkerLost.__name__, message))


def failure(error: BaseException) -> Failure:
    """Return what is told of an error, whatever its class does when asked for its words."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a class of the task's may do anything
        message = f"{name} cannot say what it is: its str() fails."
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        lines = "".join(told.format())
    except Exception as fault:  # noqa: BLE001 - notes, groups and syntax errors of its own making
        lines = f"The traceback of {name} cannot be told: {type(fault).__name__}.\n"
    return Failure(
        type=name[:TYPE_MAX] or "Exception",
        message=clipped(printable(message), MESSAGE_MAX),
        traceback=clipped(printable(lines), TRACEBACK_MAX),
        retry_after=error.after if isinstance(error, Retry) else None,
    )


def _interruption(error: BaseException | None) -> TaskInterrupted | None:
    """Find the interruption behind an error, also where the task's own clean-up failed after it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, TaskInterrupted):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
