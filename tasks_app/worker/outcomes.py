"""What becomes of outcomes: how they are written, and what the log says of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from django.db import DatabaseError, transaction

from tasks_app import lifecycle
from tasks_app.claims import Claim
from tasks_app.ledger import begin
from tasks_app.states import Verb
from tasks_app.worker.execution import Outcome, failure
from tasks_app.worker.run import Run
from tasks_app.worker.trouble import TROUBLE

logger = logging.getLogger("tasks_app.worker")


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


def write(outcomes: Iterable[Outcome], now: datetime) -> list[Claim]:
    """Write outcomes, one statement group for each verb. Return the void claims."""
    by_verb: dict[Verb, dict[Claim, Any]] = {}
    for run, verb, value in outcomes:
        by_verb.setdefault(verb, {})[run.claim] = value
    return [claim for verb, values in by_verb.items() for claim in WRITERS[verb](values, now=now)]


def write_alone(outcome: Outcome, using: str) -> tuple[Outcome, list[Claim]]:
    """Write an outcome in a transaction of its own. Return what was written, and the void claims.

    An outcome that the database refuses is told as its task's failure instead. Raises what Django
    raises when the database does not answer.
    """
    if outcome.run.lost:
        return outcome, []
    try:
        with transaction.atomic(using=using):
            return outcome, write([outcome], begin(using))
    except TROUBLE:
        raise
    except DatabaseError as error:
        outcome = Outcome(outcome.run, Verb.FAIL, failure(error))
        with transaction.atomic(using=using):
            return outcome, write([outcome], begin(using))


def tell(run: Run, verb: Verb, value: Any) -> None:
    """Log how a run ended."""
    if verb in PAST:
        logger.info("Task %s %s after %.3f s", run, PAST[verb], run.seconds, extra=run.log_extra)
        return
    logger.error(
        "Task %s failed after %.3f s%s: %s: %s\n%s",
        run,
        run.seconds,
        "; it will be tried again" if verb is Verb.RETRY else "",
        value.type,
        value.message,
        value.traceback,
        extra=run.log_extra,
    )
