"""What becomes of outcomes: how they are written, and what the log says of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from textwrap import indent
from typing import Any

from tasks_app.exceptions import LeaseLost
from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped
from tasks_app.states import Verb
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, Failure
from tasks_app.worker.execution import Outcome
from tasks_app.worker.run import NEVER, Run
from tasks_app.worker.runs import Runs
from tasks_app.worker.shutdown import STOP_SECONDS

logger = SafeLogger("tasks_app.worker")


def _cancel(stuck: dict[Claim, Any], now: datetime) -> list[Claim]:
    return lifecycle.cancel(stuck, stuck=[c for c, is_stuck in stuck.items() if is_stuck], now=now)


WRITERS: dict[Verb, Callable[..., list[Claim]]] = {
    Verb.COMPLETE: lifecycle.complete,
    Verb.FAIL: lifecycle.fail,
    Verb.CANCEL: _cancel,
    Verb.RETRY: lifecycle.retry,
    Verb.RELEASE: lifecycle.release,
}

PAST = {Verb.COMPLETE: "completed", Verb.CANCEL: "was cancelled", Verb.RELEASE: "was released"}


def write(runs: Collection[Run], outcomes: Iterable[Outcome], now: datetime) -> list[Claim]:
    """Write what runs have to say, and then how they ended. Return the void claims.

    One statement group for each kind of progress, log lines, and each verb.
    """
    void = lifecycle.report({run.claim: run.progress for run in runs if run.progress})
    void += lifecycle.log({run.claim: run.lines for run in runs if run.lines}, now=now)
    by_verb: dict[Verb, dict[Claim, Any]] = {}
    for run, verb, value in outcomes:
        by_verb.setdefault(verb, {})[run.claim] = value
    for verb, values in by_verb.items():
        void += WRITERS[verb](values, now=now)
    return void


def tell(run: Run, verb: Verb, value: Any) -> None:
    """Log how a run ended."""
    if verb in PAST:
        logger.info("Task %s %s after %.3f s", run, PAST[verb], run.seconds, extra=run.log_extra)
        return
    if logger.isEnabledFor(logging.ERROR):
        logger.handle(_failed(run, verb, value))


def _failed(run: Run, verb: Verb, value: Failure) -> logging.LogRecord:
    """Return the record of a failure, with its exception for what reports errors.

    What a user gave to the task may be quoted in its error. So the message is one line, and the
    traceback is indented: neither can look like another record, or steer a terminal.
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


def forsake(runs: Runs) -> None:
    """Stop tasks that a worker can no longer write, and log what it knows of them."""
    for run in runs.values():
        run.stop(LeaseLost(), STOP_SECONDS / 2)
        outcome = runs.outcomes.get(run)
        if outcome:
            what = f"ended after {run.seconds:.3f} s ({outcome.verb.value})"
        else:
            what = "had not begun" if run.began == NEVER else f"had run for {run.seconds:.3f} s"
        logger.error("Not recorded: task %s %s", run, what, extra=run.log_extra)
