"""Every way in which a run can end, and the resulting verb."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tasks_app.exceptions import (
    DuplicateTask,
    InvalidResult,
    LeaseLost,
    Retry,
    TaskCancelled,
    TaskError,
    TaskInterrupted,
    TaskReleased,
    TaskTimedOut,
)
from tasks_app.states import Verb
from tasks_app.store.claims import Failure
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.worker.outcomes import cut_short, failure, outcome_of, stuck_outcome
from tasks_app.worker.threads import execute
from tests.more_tasks import (
    CleansUpBadly,
    Echo,
    NeverAgain,
    Secrets,
    StartsBadly,
    SummariseLoosely,
    Translates,
)
from tests.stubborn_tasks import Raising
from tests.tasks import Add, Burst, Fail, Noop, Quit, WrongResult
from tests.worker.runs import made

CUT_SHORT = Failure(
    "WorkerLost", "The worker was shut down, and this task does not start again by itself."
)


def test_result_completes_the_run() -> None:
    run = made(Add, params={"a": 40})
    assert execute(run) == (run, Verb.COMPLETE, 42)
    assert execute(made(Noop)).value is None


@pytest.mark.parametrize(
    ("task", "params"),
    [
        # As after a deployment whose version requires more parameters.
        (Secrets, {"password": "hush", "token": "hush"}),
        (Secrets, {"password": ["hush"], "token": 1, "items": [], "by_name": {}}),
        (SummariseLoosely, {"rows": "hush"}),
    ],
)
def test_params_and_results_are_not_in_the_error(task: Any, params: Any) -> None:
    """Readers of errors may not be allowed to see them."""
    outcome = execute(made(task, params=params))
    assert outcome.verb is Verb.FAIL
    assert outcome.value.type in {"InvalidParams", "InvalidResult"}
    assert "hush" not in outcome.value.message + outcome.value.traceback


def test_exception_fails_the_run() -> None:
    run = made(Fail, params={"message": "it broke"})
    outcome = execute(run)
    assert outcome[:2] == (run, Verb.FAIL)
    assert (outcome.value.type, outcome.value.message) == ("ValueError", "it broke")
    assert outcome.value.traceback.startswith("Traceback (most recent call last):")
    assert outcome.value.traceback.endswith("ValueError: it broke\n")
    assert outcome.value.data() == {"error": {"type": "ValueError", "message": "it broke"}}


class Worded(BaseTask):
    public_error = "The report was not made."

    def execute(self, progress: ProgressHandle, which: str) -> None:
        raise {
            "plain": ValueError("secret"),
            "for the owner": TaskError("The file is empty."),
            "of its own": Refused(),
            "of the app": DuplicateTask("secret"),
            "another attempt": Retry("secret"),
            "odd": Mute(),
        }[which]


class Refused(TaskError):
    """The bank refused the card."""


class Mute(Exception):
    """Has a public_error that raises."""

    @property
    def public_error(self) -> str:
        raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("plain", Worded.public_error),
        ("for the owner", "The file is empty."),
        ("of its own", "The bank refused the card."),
        ("of the app", Worded.public_error),
        ("another attempt", Worded.public_error),
        ("odd", None),
    ],
)
def test_public_error_of_each_exception(which: str, words: str | None) -> None:
    value = execute(made(Worded, params={"which": which})).value
    assert (value.public_error, value.data().get("public_error")) == (words, words)
    assert execute(made(Fail)).value.public_error is None
    timed_out = made(Fail)
    timed_out.handle.stop(TaskTimedOut("Timed out after 3 s."))
    assert execute(timed_out).value.public_error == "Timed out after 3 s."


@pytest.mark.parametrize(
    ("task", "params", "kind", "message"),
    [
        (Quit, {}, "SystemExit", "3"),
        (WrongResult, {}, "InvalidResult", "WrongResult returned an invalid result: "),
        (Add, {}, "InvalidParams", "Invalid parameters for Add: a: Field required"),
        (StartsBadly, {}, "RuntimeError", "no instance"),
        ("tests.tasks.Gone", {}, "UnknownTask", "There is no task 'tests.tasks.Gone': "),
        ("tests.tasks.Order", {}, "UnknownTask", "There is no task 'tests.tasks.Order': "),
        ("tests.more_tasks.Abstract", {}, "NotImplementedError", "Abstract must define execute()"),
    ],
)
def test_any_invalid_task_fails_the_run(
    task: object, params: dict[str, object], kind: str, message: str
) -> None:
    outcome = execute(made(task, params=params))  # type: ignore[arg-type]
    assert outcome.verb is Verb.FAIL
    assert outcome.value.type == kind
    assert outcome.value.message.startswith(message)


@pytest.mark.parametrize(
    ("attempt", "max_attempts", "verb"),
    [(1, 1, Verb.FAIL), (1, 2, Verb.RETRY), (2, 3, Verb.RETRY), (3, 3, Verb.FAIL)],
)
def test_failure_is_retried_while_attempts_are_left(
    attempt: int, max_attempts: int, verb: Verb
) -> None:
    run = made(Fail, params={}, attempt=attempt, max_attempts=max_attempts)
    outcome = execute(run)
    assert (outcome.verb, outcome.value.message) == (verb, "it broke")


@pytest.mark.parametrize(
    ("reason", "verb", "value"),
    [
        (TaskCancelled(), Verb.CANCEL, False),
        (TaskReleased(), Verb.RELEASE, None),
        (LeaseLost(), Verb.RELEASE, None),
    ],
)
@pytest.mark.parametrize("task", [Burst, CleansUpBadly, Translates])
@pytest.mark.parametrize("max_attempts", [1, 2])
def test_interruption_ends_the_run_by_its_reason(
    task: type[object],
    reason: TaskInterrupted,
    verb: Verb,
    value: object,
    max_attempts: int,
) -> None:
    """Even if the task's own clean-up fails, or raises another error."""
    run = made(task, max_attempts=max_attempts)
    run.handle.stop(reason)
    assert execute(run) == (run, verb, value)


@pytest.mark.parametrize("task", [Burst, CleansUpBadly, Translates])
@pytest.mark.parametrize("max_attempts", [1, 2])
def test_timeout_fails_the_run_without_retry(task: type[object], max_attempts: int) -> None:
    run = made(task, max_attempts=max_attempts)
    run.handle.stop(TaskTimedOut("Timed out after 5 s."))
    outcome = execute(run)
    assert outcome.verb is Verb.FAIL
    assert (outcome.value.type, outcome.value.message) == (
        "TaskTimedOut",
        "Timed out after 5 s.",
    )


def in_groups(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [*errors])])


@pytest.mark.parametrize(
    ("reason", "verb"),
    [
        (TaskCancelled(), Verb.CANCEL),
        (TaskReleased(), Verb.RELEASE),
        (TaskTimedOut("Timed out after 5 s."), Verb.FAIL),
    ],
    ids=repr,
)
def test_interruption_is_found_in_exception_groups(
    reason: TaskInterrupted, verb: Verb, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio, anyio and trio raise such groups. Other errors in the group are logged."""
    alone, nested = in_groups(reason), in_groups(TaskCancelled())
    wrapped = RuntimeError("stopped")
    wrapped.__cause__ = nested
    for error, logged in [(alone, False), (wrapped, True), (in_groups(KeyError(1), reason), True)]:
        run = made(Noop, max_attempts=2)
        run.handle.stop(reason)
        caplog.clear()
        outcome = outcome_of(run, error)
        assert outcome.verb is verb
        assert verb is not Verb.FAIL or outcome.value.type == "TaskTimedOut"
        assert ("it also raised another error, which is ignored" in caplog.text) is logged
    assert "KeyError: 1" in caplog.text


def test_group_without_interruption_is_an_ordinary_error() -> None:
    outcome = outcome_of(made(Noop, max_attempts=2), ExceptionGroup("two", [KeyError(1)]))
    assert (outcome.verb, outcome.value.type) == (Verb.RETRY, "ExceptionGroup")


def test_run_that_finishes_after_a_stop_request_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = made(Noop)

    def stop_during_execute(self: Noop, progress: ProgressHandle) -> None:
        progress.stop(TaskCancelled())

    monkeypatch.setattr(Noop, "execute", stop_during_execute)
    assert execute(run).verb is Verb.COMPLETE


def test_cancelled_run_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = made(Noop)
    run.handle.stop(TaskCancelled())
    monkeypatch.setattr(Noop, "execute", None)
    assert execute(run).verb is Verb.CANCEL


# Retries.


@pytest.mark.parametrize(
    ("error", "verb"),
    [
        (ValueError("one of those"), Verb.RETRY),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "one of their kind"), Verb.RETRY),
        (FileNotFoundError("an exception from the rule"), Verb.FAIL),
        (KeyError("none of those"), Verb.FAIL),
        (SystemExit(1), Verb.FAIL),
        (Retry(after=5), Verb.RETRY),
        (InvalidResult("Other", []), Verb.FAIL),
    ],
    ids=repr,
)
def test_retry_on_selects_the_errors_to_retry(
    error: BaseException, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "error", error)
    assert execute(made(Raising, max_attempts=2)).verb is verb


def test_last_attempt_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raising, "error", Retry("no luck", after=5))
    outcome = execute(made(Raising, max_attempts=1))
    assert (outcome.verb, outcome.value.type, outcome.value.message) == (
        Verb.FAIL,
        "Retry",
        "no luck",
    )


@pytest.mark.parametrize("after", [timedelta(minutes=2), 120, Decimal(120)])
def test_retry_sets_the_delay(after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raising, "error", Retry(after=after))
    assert execute(made(Raising, max_attempts=2)).value.retry_after == timedelta(minutes=2)


@pytest.mark.parametrize("after", [-1, float("nan"), 366 * 24 * 3600])
def test_invalid_retry_delay_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="after must be from 0 to 31536000 seconds"):
        Retry(after=after)


def test_timeout_is_retried_if_listed_in_retry_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raising, "retry_on", (TaskTimedOut,))
    run = made(Raising, max_attempts=2)
    run.handle.stop(TaskTimedOut("Timed out after 5 s."))
    assert execute(run).verb is Verb.RETRY


# Abandoned threads.


def test_abandoned_cancelled_run_is_cancelled() -> None:
    run = made(Noop)
    run.handle.stop(TaskCancelled())
    assert stuck_outcome(run)[1:] == (Verb.CANCEL, True)


def test_abandoned_timed_out_run_fails_and_is_stuck() -> None:
    run = made(Raising, max_attempts=2)
    run.handle.stop(TaskTimedOut("Timed out after 5 s."))
    outcome = stuck_outcome(run)
    assert (outcome.verb, outcome.value.type, outcome.value.stuck) == (
        Verb.FAIL,
        "TaskTimedOut",
        True,
    )


# Runs cut short by a shutdown.


def test_shutdown_releases_the_run() -> None:
    run = made(Noop)
    assert cut_short(run) == (run, Verb.RELEASE, None)


def test_shutdown_fails_a_run_that_must_not_restart() -> None:
    run = made(NeverAgain)
    assert cut_short(run) == (run, Verb.FAIL, CUT_SHORT)


@pytest.mark.parametrize("name", ["tests.tasks.Gone", "nodots"])
def test_shutdown_releases_a_run_of_an_unknown_task(name: str) -> None:
    run = made(name)
    assert cut_short(run) == (run, Verb.RELEASE, None)


# Failures.


def test_failure_is_made_storable() -> None:
    found = failure(ValueError("nul \0, half a pair \ud800"))
    assert found.message == "nul \ufffd, half a pair ?"
    assert "\0" not in found.traceback
    assert "\ud800" not in found.traceback


def test_failure_includes_its_causes() -> None:
    def fails() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        fails()
    assert "KeyError: 'first'" in failure(caught.value).traceback


def test_errors_that_cause_each_other_are_handled() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first

    run = made(Raises, params={})
    Raises.error = first
    assert execute(run).verb is Verb.FAIL


class Raises(Echo):
    error: Exception

    def run(self, *_args: object) -> object:
        raise self.error
