"""The outcomes of runs: how they are decided, written and logged."""

from __future__ import annotations

import logging
import traceback
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from textwrap import indent
from typing import Any, NamedTuple

from django.db import transaction

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
from tasks_app.schemas import (
    MESSAGE_MAX,
    TRACEBACK_MAX,
    TYPE_MAX,
    TaskProgressUpdate,
    ascii_only,
    clipped,
    escaped,
    printable,
)
from tasks_app.states import Verb
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, Failure
from tasks_app.store.ledger import begin
from tasks_app.tasks.base import BaseTask, resolve
from tasks_app.worker.runs import Outcome, Run
from tasks_app.worker.trouble import REFUSED, TROUBLE

logger = SafeLogger("tasks_app.worker")

#: The exceptions of a run that was asked to stop.
STOPPED = (TaskInterrupted, CancelledError)

WRITERS: dict[Verb, Callable[..., list[Claim]]] = {
    Verb.COMPLETE: lifecycle.complete,
    Verb.FAIL: lifecycle.fail,
    Verb.CANCEL: lifecycle.cancel,
    Verb.RETRY: lifecycle.retry,
    Verb.RELEASE: lifecycle.release,
}

PAST = {Verb.COMPLETE: "completed", Verb.CANCEL: "was cancelled", Verb.RELEASE: "was released"}


# Decide.


def outcome_of(run: Run, error: BaseException) -> Outcome:
    """Return the outcome of a run that ended with an error."""
    reason = _interruption(error)
    if reason is None and run.section.interrupted:
        # The coroutine or the query was cancelled, which raises errors of other kinds.
        reason = run.handle.reason
    # The exception raised in a thread is a bare class; the handle has the message.
    reason = reason and (run.handle.reason or reason)
    if reason and (rest := _other_errors(error)):
        logger.warning(
            "Task %s stopped when asked to; it also raised another error, which is ignored",
            run,
            exc_info=rest,
            extra=run.log_extra,
        )
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL, False)
    if isinstance(reason, (TaskReleased, LeaseLost)):
        return cut_short(run)
    if _is_retried(run, reason or error):
        return Outcome(run, Verb.RETRY, failure(reason or error, run.cls))
    return Outcome(run, Verb.FAIL, failure(reason or error, run.cls))


def stuck_outcome(run: Run) -> Outcome:
    """Return the outcome of a run that did not stop when asked to, and whose thread is abandoned.

    It is never retried, even if its class allows that: the abandoned code may still be running.
    """
    reason = run.handle.reason
    if isinstance(reason, TaskCancelled):
        return Outcome(run, Verb.CANCEL, True)
    if isinstance(reason, TaskTimedOut):
        return Outcome(run, Verb.FAIL, replace(failure(reason, run.cls), stuck=True))
    return cut_short(run)


def cut_short(run: Run) -> Outcome:
    """Return the outcome of a run that the worker's shutdown ended."""
    # A run whose class is not imported has not begun. If the import fails, the next worker
    # reports that.
    if run.cls is None or run.cls.restart_on_shutdown:
        return Outcome(run, Verb.RELEASE)
    message = "The worker was shut down, and this task does not start again by itself."
    public = _public(WorkerLost(message), run.cls)
    return Outcome(run, Verb.FAIL, Failure(WorkerLost.__name__, message, public_error=public))


def failure(error: BaseException, task: type[BaseTask] | None = None) -> Failure:
    """Return the failure to store for an error. Never raises, even if the error's str() does."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception class of a task may do anything
        message = f"{name} has no message: its str() fails."
    try:
        formatted = traceback.TracebackException.from_exception(error, compact=True)
        lines = "".join(formatted.format())
    except Exception as fault:  # noqa: BLE001 - notes, groups and syntax errors may be odd too
        lines = f"The traceback of {name} cannot be formatted: {type(fault).__name__}.\n"
    return Failure(
        type=name[:TYPE_MAX] or "Exception",
        message=clipped(printable(message), MESSAGE_MAX),
        traceback=clipped(printable(lines), TRACEBACK_MAX),
        retry_after=error.after if isinstance(error, Retry) else None,
        error=error,
        public_error=_public(error, task),
    )


def _is_retried(run: Run, error: BaseException) -> bool:
    """Return whether another attempt follows: the class allows it, and one is left."""
    if run.task.attempt >= run.task.max_attempts:
        return False
    if isinstance(error, Retry):
        return True
    if isinstance(error, UnknownTask):
        return True  # The code may be deployed soon, or be on another host.
    if isinstance(error, (InvalidParams, InvalidResult, InvalidTask)):
        return False
    task = run.cls or resolve(run.task.name)
    return isinstance(error, task.retry_on) and not isinstance(error, task.no_retry_on)


def _public(error: BaseException, task: type[BaseTask] | None) -> str | None:
    """Return the message for the task's owner: the error's, or else that of the class."""
    try:
        text = getattr(error, "public_error", None) or (task and task.public_error)
        return clipped(printable(str(text)), MESSAGE_MAX) if text else None
    except Exception:  # noqa: BLE001 - an exception class of a task may do anything
        return None


def _interruption(error: BaseException) -> TaskInterrupted | None:
    """Find the interruption behind an error: itself, its cause, or within an exception group.

    A group that also holds other errors counts as the interruption. So does an error that was
    raised while the interruption was handled: the task was asked to stop, and did.
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


def _other_errors(error: BaseException) -> BaseException | None:
    """Return the part of an error that is not an interruption itself."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(STOPPED)[1]
    return None if isinstance(error, STOPPED) else error


# Write.


def write(runs: Collection[Run], outcomes: Iterable[Outcome], now: datetime) -> list[Claim]:
    """Write the progress and log lines of runs, then their outcomes. Return the stale claims.

    There is one group of statements for progress, one for log lines, and one for each verb.
    """
    stale = lifecycle.report({run.claim: run.progress for run in runs if run.progress}, now=now)
    stale += lifecycle.log({run.claim: run.lines for run in runs if run.lines}, now=now)
    by_verb: dict[Verb, dict[Claim, Any]] = {}
    for run, verb, value in outcomes:
        by_verb.setdefault(verb, {})[run.claim] = value
    for verb, values in by_verb.items():
        stale += WRITERS[verb](values, now=now)
    return stale


class Separate(NamedTuple):
    """The result of writing a run in a separate transaction."""

    outcome: Outcome | None
    stale: list[Claim]
    #: The database refused the first version of its texts.
    refused: bool


def write_alone(run: Run, outcome: Outcome | None, using: str) -> Separate:
    """Write one run in a separate transaction, with texts that the database accepts.

    Try its texts unchanged, then in ASCII, then a failure instead of its outcome, and at last only
    fixed texts. Raises what Django raises if the database does not answer, or refuses even those.
    """
    if run.lost:
        return Separate(outcome, [], refused=False)
    refusals: list[Exception] = []
    for version in _versions(run, outcome, refusals):
        try:
            with transaction.atomic(using=using):
                stale = write([run], [version] if version else [], begin(using))
            return Separate(version, stale, refused=bool(refusals))
        except TROUBLE:
            raise
        except REFUSED as error:
            refusals.append(error)
    raise refusals[-1]


def _versions(
    run: Run, outcome: Outcome | None, refusals: Sequence[Exception]
) -> Iterator[Outcome | None]:
    """Yield versions of the outcome, the most complete first, and change the run's texts with them.

    Before it takes the next version, the caller adds the database's refusal to `refusals`.
    """
    yield outcome
    refusal = refusals[0]
    logger.warning(
        "The database refuses what task %s says, so its texts are written in ASCII from now on: %s",
        run,
        _reason(refusal),
        extra=run.log_extra,
    )
    # Also the progress that was written before: the terminal event repeats it, and JSON may refuse
    # a text that a column accepted.
    run.progress = run.progress or run.handle.latest
    run.use_ascii()
    if outcome is None or not isinstance(outcome.value, Failure):
        yield outcome
    else:
        yield outcome._replace(value=_in_ascii(outcome.value))
    message = f"The database refused what this task returned or said: {_reason(refusal)}"
    failed = Failure(type(refusal).__name__, message, error=refusal)
    if outcome is not None:
        yield Outcome(run, Verb.FAIL, failed)
    run.progress, run.lines = TaskProgressUpdate(), []
    if outcome is not None:
        message = "The database refused what this task returned or said. The worker's log says why."
        outcome = Outcome(run, Verb.FAIL, replace(failed, message=message))
    yield outcome


def _reason(refusal: Exception) -> str:
    """Return the database's message, without the lines that quote the refused text."""
    return ascii_only(escaped(str(refusal).strip().partition("\n")[0]))


def _in_ascii(failure: Failure) -> Failure:
    return replace(
        failure,
        type=ascii_only(failure.type),
        message=ascii_only(failure.message),
        traceback=ascii_only(failure.traceback),
        public_error=failure.public_error and ascii_only(failure.public_error),
    )


# Log.


def log_outcome(run: Run, verb: Verb, value: Any) -> None:
    """Log how a run ended."""
    if verb in PAST:
        logger.info("Task %s %s after %.3f s", run, PAST[verb], run.seconds, extra=run.log_extra)
        return
    if logger.isEnabledFor(logging.ERROR):
        logger.handle(_failure_record(run, verb, value))


def _failure_record(run: Run, verb: Verb, value: Failure) -> logging.LogRecord:
    """Return the record of a failure, with its exception for error reporters.

    The error may quote what a user gave to the task. So the message is one line, and the traceback
    is indented: neither can look like another record, or send codes to a terminal.
    """
    again = "; it will be tried again" if verb is Verb.RETRY else ""
    error = value.error
    record = logger.makeRecord(
        logger.name,
        logging.ERROR,
        __file__,
        0,
        "Task %s failed after %.3f s%s: %s: %s",
        (run, run.seconds, again, escaped(value.type), escaped(value.message)),
        (type(error), error, error.__traceback__) if error else None,
        extra={**run.log_extra, "task_name": run.task.name, "error_type": value.type},
    )
    record.exc_text = indent(escaped(value.traceback, keep="\n"), "    ").rstrip()
    return record
