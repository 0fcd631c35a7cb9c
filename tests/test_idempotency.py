"""An owner's idempotency key starts one task, however often and quickly it is sent."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, connection, transaction
from pydantic import ValidationError

from tasks_app.exceptions import DuplicateTask, IdempotencyKeyReused, InvalidParams
from tasks_app.models import Task
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tests.harness import PATIENCE
from tests.more_tasks import Echo
from tests.rows import ended, fresh, saved, snapshot
from tests.tasks import Add, Noop

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def start(owner: Any, key: str | None = "k", a: int = 1, **options: Any) -> TaskStartResponse:
    return task_service.start_task(Add, {"a": a}, owner=owner, idempotency_key=key, **options)


def test_same_start_again_returns_the_first_task(ada: User) -> None:
    first = start(ada)
    before = snapshot()
    again = start(ada)
    assert (first.task_id, first.replayed) == (again.task_id, False)
    assert again.replayed
    assert snapshot() == before


def test_replay_returns_the_current_status(ada: User) -> None:
    first = ended(
        Status.FAILED,
        owner=ada,
        idempotency_key="k",
        name="tests.tasks.Add",
        params={"a": 1, "b": 2},
    )
    again = start(ada)
    assert (again.task_id, again.status) == (first.pk, Status.FAILED)


def test_replayed_flag_is_not_in_the_json(ada: User) -> None:
    start(ada)
    assert set(start(ada).model_dump()) == {"task_id", "stream_url", "status"}


def test_each_owner_has_separate_keys(ada: User) -> None:
    assert not start(User.objects.create_user("bob")).replayed
    assert not start(ada).replayed
    assert not start(ada, "another").replayed
    assert not start(ada, None).replayed
    assert Task.objects.count() == 4


@pytest.mark.parametrize(("task", "params"), [(Add, {"a": 2}), (Add, {"a": 1, "b": 3}), (Noop, {})])
def test_key_of_a_different_start_is_refused(ada: User, task: Any, params: Any) -> None:
    first = start(ada)
    before = snapshot()
    with pytest.raises(IdempotencyKeyReused) as caught:
        task_service.start_task(task, params, owner=ada, idempotency_key="k")
    assert (caught.value.key, caught.value.task_id) == ("k", first.task_id)
    assert str(caught.value) == (
        f"The idempotency key 'k' was already used to start task {first.task_id}, with another "
        f"class or other parameters. Use a new key for each new start."
    )
    assert snapshot() == before


def test_parameters_are_compared_after_validation(ada: User) -> None:
    start(ada)
    assert task_service.start_task(
        "tests.tasks.Add", {"b": "2", "a": "1"}, owner=ada, idempotency_key="k"
    ).replayed


@pytest.mark.parametrize(
    "number", [5.972e24, 1e300, 123456789012345678901.0, -1e16, -0.0, 1e-7, 1.5, 0.1, 2**70, 10**24]
)
def test_numbers_compare_equal_after_a_database_round_trip(ada: User, number: float) -> None:
    """PostgreSQL returns a large float as the integer spelled by its shortest digits."""
    params = {"seen": [number, {"number": number}], "none": None}

    def start_with(value: Any) -> TaskStartResponse:
        return task_service.start_task(Echo, {"value": value}, owner=ada, idempotency_key="k")

    start_with(params)
    assert start_with(params).replayed
    for other in (
        {"seen": [number, {"number": number * 2 + 1}], "none": None},
        {"seen": [number], "none": None},
        {"seen": [number, {"number": number}]},
    ):
        with pytest.raises(IdempotencyKeyReused):
            start_with(other)


@pytest.mark.parametrize(
    ("first", "second"),
    [*itertools.permutations([1, 1.0, True, "1"], 2), pytest.param(10**400, 1e300, id="long")],
)
def test_values_that_python_takes_for_equal_are_other_parameters(
    ada: User, first: Any, second: Any
) -> None:
    def start_with(value: Any) -> TaskStartResponse:
        params = {"value": {"of": [value]}}
        return task_service.start_task(Echo, params, owner=ada, idempotency_key="k")

    start_with(first)
    assert start_with(first).replayed
    with pytest.raises(IdempotencyKeyReused):
        start_with(second)


def test_invalid_parameters_are_refused_even_with_a_used_key(ada: User) -> None:
    start(ada)
    with pytest.raises(InvalidParams):
        task_service.start_task(Add, {"a": "x"}, owner=ada, idempotency_key="k")


def test_unique_key_does_not_prevent_a_replay(ada: User) -> None:
    first = start(ada, unique_key="u")
    assert start(ada, unique_key="u").task_id == first.task_id
    with pytest.raises(DuplicateTask):
        start(ada, "another", unique_key="u")


def test_removed_task_frees_its_key(ada: User) -> None:
    first = start(ada)
    task_service.cancel_task(first.task_id)
    assert start(ada).replayed
    task_service.remove_completed_task(first.task_id)
    assert not start(ada).replayed


def test_retry_does_not_inherit_the_key(ada: User) -> None:
    first = start(ada)
    task_service.cancel_task(first.task_id)
    again = task_service.retry_task(first.task_id)
    assert Task.objects.get(pk=again.task_id).idempotency_key is None
    assert start(ada).task_id == first.task_id


@pytest.mark.parametrize("owner", [None, AnonymousUser()])
def test_key_needs_an_owner(owner: Any) -> None:
    with pytest.raises(
        ValidationError, match="an idempotency_key belongs to an owner: give the owner"
    ):
        start(owner)
    assert snapshot() == ([], [])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "String should have at least 1 character"),
        ("x" * 201, "String should have at most 200 characters"),
        ("a\0b", "must not contain a NUL character, which databases cannot store"),
    ],
)
def test_invalid_key_is_refused(ada: User, key: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        start(ada, key)


@pytest.mark.parametrize("option", ["queue", "unique_key"])
def test_nul_in_an_option_is_refused(option: str) -> None:
    with pytest.raises(ValidationError, match="must not contain a NUL character"):
        task_service.start_task(Noop, **{option: "a\0b"})


@pytest.mark.parametrize("year", [1899, 9999])
def test_run_after_must_be_valid_in_all_time_zones(year: int) -> None:
    with pytest.raises(ValidationError, match="must be from the year 1900 to 9998"):
        task_service.start_task(Noop, run_after=datetime(year, 12, 31, 23, 59, tzinfo=UTC))


def test_start_many_takes_no_key(ada: User) -> None:
    with pytest.raises(ValueError, match="an idempotency_key belongs to one start"):
        task_service.start_many(Noop, [{}], owner=ada, idempotency_key="k")


def test_other_integrity_errors_are_raised(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IntegrityError("of another kind")

    monkeypatch.setattr(lifecycle, "enqueue", broken)
    with pytest.raises(IntegrityError, match="of another kind"):
        start(ada)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("unique_key", [None, "u"])
def test_one_of_many_concurrent_starts_creates_the_task(
    ada: User, monkeypatch: pytest.MonkeyPatch, unique_key: str | None
) -> None:
    """All of them find no task with the key before the first one writes."""
    together = threading.Barrier(4)
    enqueue = lifecycle.enqueue

    def wait_and_enqueue(rows: list[Task]) -> None:
        together.wait(PATIENCE)
        enqueue(rows)

    def begin(_: int) -> TaskStartResponse:
        try:
            return start(ada, unique_key=unique_key)
        finally:
            connection.close()

    monkeypatch.setattr(lifecycle, "enqueue", wait_and_enqueue)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(begin, range(4)))
    assert len({answer.task_id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True]
    assert Task.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_transaction_continues_after_a_replay(ada: User) -> None:
    first = saved(owner=ada, idempotency_key="k", name="tests.tasks.Add", params={"a": 1, "b": 2})
    with transaction.atomic():
        assert start(ada).task_id == first.pk
        start(ada, "another")
    assert Task.objects.count() == 2
    assert fresh(first).status == Status.PENDING
