"""The pool of threads, and one run of a task in them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from queue import SimpleQueue
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

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
from tasks_app.worker.runs import NEVER, Outcome
from tasks_app.worker.threads import Pool, execute
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
from tests.tasks import Add, Burst, Deaf, Fail, Noop, Quit, WrongResult
from tests.worker.runs import made

PATIENCE = 20.0


@pytest.fixture
def delivered() -> SimpleQueue[Outcome]:
    return SimpleQueue()


@pytest.fixture
def pool(delivered: SimpleQueue[Outcome]) -> Iterator[Pool]:
    made = Pool(2, delivered.put)
    yield made
    made.close()
    assert made.join(PATIENCE)


def test_pool_runs_submitted_tasks(pool: Pool, delivered: SimpleQueue[Outcome]) -> None:
    runs = [made(Add, params={"a": number}) for number in range(10)]
    for run in runs:
        pool.submit(run)
    outcomes = {outcome.run: outcome for outcome in [delivered.get(timeout=PATIENCE) for _ in runs]}
    assert [outcomes[run].value for run in runs] == [number + 2 for number in range(10)]
    assert all(run.claimed <= run.began < NEVER for run in runs)


def test_pool_runs_one_task_per_thread_at_a_time(
    pool: Pool, delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs meet at a barrier for two. With one thread they never would."""
    meeting = threading.Barrier(2, timeout=PATIENCE)
    monkeypatch.setattr(Echo, "run", lambda *_: meeting.wait() >= 0)
    for _ in range(4):
        pool.submit(made(Echo))
    assert [delivered.get(timeout=PATIENCE).verb for _ in range(4)] == [Verb.COMPLETE] * 4


def test_thread_survives_any_exception(pool: Pool, delivered: SimpleQueue[Outcome]) -> None:
    for _ in range(4):
        pool.submit(made(Quit))
    pool.submit(made(Add, params={"a": 1}))
    verbs = [delivered.get(timeout=PATIENCE).verb for _ in range(5)]
    assert sorted(verbs) == sorted([Verb.FAIL] * 4 + [Verb.COMPLETE])


def test_unstarted_runs_are_recalled(
    pool: Pool, delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> None:
        begun.release()
        go_on.wait(PATIENCE)

    monkeypatch.setattr(Deaf, "run", wait)
    running, waiting = [made(Deaf) for _ in range(2)], [made(Deaf) for _ in range(3)]
    for run in running:
        pool.submit(run)
    for _ in running:
        assert begun.acquire(timeout=PATIENCE)
    for run in waiting:
        pool.submit(run)
    assert pool.recall() == waiting
    assert pool.recall() == []
    assert all(run.began == NEVER for run in waiting)
    go_on.set()
    assert {delivered.get(timeout=PATIENCE).run for _ in running} == set(running)


def test_close_does_not_wait_but_join_does(
    delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Deaf, "run", lambda *_: go_on.wait(PATIENCE))
    pool = Pool(1, delivered.put)
    pool.submit(made(Deaf))
    pool.close()
    assert not pool.join(0.01)
    go_on.set()
    assert pool.join(PATIENCE)
    assert delivered.get(timeout=PATIENCE).verb is Verb.COMPLETE


def test_threads_do_not_keep_the_process_alive() -> None:
    pool = Pool(1, lambda _outcome: None)
    threads = [one for one in threading.enumerate() if one.name.startswith("task-thread-")]
    assert threads
    assert all(thread.daemon for thread in threads)
    pool.close()
    assert pool.join(PATIENCE)


@pytest.mark.django_db(transaction=True)
def test_connection_is_closed_after_each_task(
    delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def use(*_: object) -> None:
        connections["default"].ensure_connection()
        used.append(connections["default"])

    monkeypatch.setattr(Echo, "run", use)
    pool = Pool(1, delivered.put)
    pool.submit(made(Echo))
    delivered.get(timeout=PATIENCE)
    [connection] = used
    assert connection.connection is None
    pool.close()
    assert pool.join(PATIENCE)


@pytest.mark.django_db(transaction=True)
def test_sync_calls_from_asyncio_get_a_thread_per_run(
    pool: Pool, delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a transaction left open or a broken connection does not reach the next run."""
    used: list[tuple[threading.Thread, BaseDatabaseWrapper]] = []

    def leave_open() -> None:
        transaction.atomic().__enter__()
        used.append((threading.current_thread(), connections["default"]))

    async def main() -> None:
        await sync_to_async(leave_open)()

    monkeypatch.setattr(Echo, "run", lambda *_: asyncio.run(main()))
    for _ in range(2):
        pool.submit(made(Echo))
        assert delivered.get(timeout=PATIENCE).verb is Verb.COMPLETE
    (first, _), (second, _) = used
    assert first is not second
    for thread, connection in used:
        assert not thread.is_alive()
        assert connection.closed_in_transaction


@pytest.mark.django_db(transaction=True)
def test_connection_is_kept_for_conn_max_age(
    delivered: SimpleQueue[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def use(*_: object) -> None:
        # Not in the test's own thread, whose connection may be a worker's copy.
        monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", None)
        connections["default"].ensure_connection()
        used.append(connections["default"])

    monkeypatch.setattr(Echo, "run", use)
    pool = Pool(1, delivered.put)
    for _ in range(2):
        pool.submit(made(Echo))
        delivered.get(timeout=PATIENCE)
    first, second = used
    assert first is second
    assert first.connection is not None
    pool.close()
    assert pool.join(PATIENCE)
    assert first.connection is None


# One run of a task, and its outcome.

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
