"""What becomes of a run whose words or result the database refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from django.db import transaction

from tasks_app.logs import SafeLogger
from tasks_app.schemas import TaskProgressUpdate, ascii_only, escaped
from tasks_app.states import Verb
from tasks_app.store.claims import Claim, Failure
from tasks_app.store.ledger import begin
from tasks_app.worker.execution import Outcome
from tasks_app.worker.outcomes import write
from tasks_app.worker.run import Run
from tasks_app.worker.trouble import REFUSED, TROUBLE

logger = SafeLogger("tasks_app.worker")


class Alone(NamedTuple):
    """What was written of a run in a transaction of its own."""

    outcome: Outcome | None
    void: list[Claim]
    #: Whether it had to be worded anew.
    refused: bool


def write_alone(run: Run, outcome: Outcome | None, using: str) -> Alone:
    """Write what a run has to say in a transaction of its own, in words that the database takes.

    First as it is; then its texts in ASCII; then its outcome as its task's failure; and at last
    nothing but words of our own. Raises what Django raises if the database does not answer, or
    refuses even those.
    """
    if run.lost:
        return Alone(outcome, [], refused=False)
    refusals: list[Exception] = []
    for worded in _wordings(run, outcome, refusals):
        try:
            return _write(run, worded, using, refused=bool(refusals))
        except TROUBLE:
            raise
        except REFUSED as error:
            refusals.append(error)
    raise refusals[-1]


def _write(run: Run, outcome: Outcome | None, using: str, *, refused: bool) -> Alone:
    with transaction.atomic(using=using):
        void = write([run], [outcome] if outcome else [], begin(using))
    return Alone(outcome, void, refused)


def _wordings(
    run: Run, outcome: Outcome | None, refusals: Sequence[Exception]
) -> Iterator[Outcome | None]:
    """Yield the outcome as it may be worded, the fullest first, and word the run alike.

    Between two of them the caller adds to `refusals` what the database said of the first.
    """
    yield outcome
    refusal = refusals[0]
    logger.warning(
        "The database refuses what task %s says, so its texts are written in ASCII from now on: %s",
        run,
        _reason(refusal),
        extra=run.log_extra,
    )
    # Also what was written before: an end repeats it, and JSON may refuse what a column took.
    run.progress = run.progress or run.handle.latest
    run.speak_ascii()
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
    """Return what the database said, without the lines in which it quotes what it refused."""
    return ascii_only(escaped(str(refusal).strip().partition("\n")[0]))


def _in_ascii(failure: Failure) -> Failure:
    return replace(
        failure,
        type=ascii_only(failure.type),
        message=ascii_only(failure.message),
        traceback=ascii_only(failure.traceback),
        public_error=failure.public_error and ascii_only(failure.public_error),
    )
