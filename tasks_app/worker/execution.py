"""One run of a task, from its row to its outcome. Runs in a hand's thread."""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

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
from tasks_app.logs import SafeLogger
from tasks_app.schemas import MESSAGE_MAX, TRACEBACK_MAX, TYPE_MAX, clipped, printable
from tasks_app.states import Verb
from tasks_app.store.claims import Failure
from tasks_app.tasks.base import BaseTask, resolve
from tasks_app.worker.run import Run

logger = SafeLogger("tasks_app.worker")

#: What a run that is told to stop raises.
STOPPED = (TaskInterrupted, CancelledError)
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
        run.cls = _class_of(run.task.name)
        result = run.cls().run(run.handle, run.task.params)
    except BaseException as error:  # noqa: BLE001 - SystemExit of a task must not end its hand
        return outcome_of(run, error)
    finally:
        run.handle.finish()
    return Outcome(run, Verb.COMPLETE, result)


def outcome_of(run: Run, error: BaseException) -> Outcome:
    """Return what becomes of a run that an error ended."""
    reason = _interruption(error)
    if reason is None and run.stretch.interrupted:
        # Its coroutine or its query was cancelled, which raises errors of other kinds.
        reason = run.handle.reason
    # What is raised in a thread is a bare class; the handle has the words.
    reason = reason and (run.handle.reason or reason)
    if reason and (rest := _beside(error)):
        logger.warning(
            "Task %s stopped as told; another error it raised counts for nothing",
            run,
            exc_info=rest,
            extra=run.log_extra,
        )
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL)
    if isinstance(reason, (TaskReleased, LeaseLost)):
        return cut_short(run)
    if _is_retried(run, reason or error):
        return Outcome(run, Verb.RETRY, failure(reason or error, run.cls))
    return Outcome(run, Verb.FAIL, failure(reason or error, run.cls))


def given_up(run: Run) -> Outcome:
    """Return the outcome of a run that was told to stop, did not, and is waited for no more."""
    reason = run.handle.reason
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL, STUCK)
    if isinstance(reason, TaskTimedOut):
        # Not tried again, whatever its class says: this attempt may still be doing things.
        return Outcome(run, Verb.FAIL, replace(failure(reason, run.cls), stuck=True))
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
    words = _public(WorkerLost(message), run.cls)
    return Outcome(run, Verb.FAIL, Failure(WorkerLost.__name__, message, public_error=words))


def failure(error: BaseException, task: type[BaseTask] | None = None) -> Failure:
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
        error=error,
        public_error=_public(error, task),
    )


def _public(error: BaseException, task: type[BaseTask] | None) -> str | None:
    """Return what the task's owner reads: the error's words for them, or else the class's."""
    try:
        text = getattr(error, "public_error", None) or (task and task.public_error)
        return clipped(printable(str(text)), MESSAGE_MAX) if text else None
    except Exception:  # noqa: BLE001 - a class of the task's may do anything
        return None


def _interruption(error: BaseException) -> TaskInterrupted | None:
    """Find the interruption behind an error: itself, what it was raised from, or within a group.

    A group that also holds other errors counts as the interruption, as does an error raised while
    handling one: the task was told to stop, and did.
    """
    seen: set[int] = set()
    waiting: deque[BaseException | None] = deque([error])
    while waiting:
        found = waiting.popleft()
        if isinstance(found, TaskInterrupted):
            return found
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        waiting.append(found.__cause__ or found.__context__)
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(found.exceptions)
    return None


def _beside(error: BaseException) -> BaseException | None:
    """Return the part of an error that is not an interruption itself."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(STOPPED)[1]
    return None if isinstance(error, STOPPED) else error


def _class_of(name: str) -> type[BaseTask]:
    """Import a task class. Raises UnknownTask, saying what else may be wrong in a worker."""
    try:
        return resolve(name)
    except UnknownTask as error:
        why = (
            f"{error.why}. A worker runs the code it started with: if it is new, restart the worker"
        )
        raise UnknownTask(name, why) from error.__cause__
