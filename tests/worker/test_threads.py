"""The pool's threads, which only run user code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from tasks_app.states import Verb
from tasks_app.worker.runs import NEVER, Outcome
from tasks_app.worker.threads import Pool
from tests.more_tasks import Echo
from tests.tasks import Add, Deaf, Quit
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
