"""Notices over Redis, asked of a real server that is killed, held and started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from tasks_app.changes import Changes, announce, watch
from tasks_app.changes.redis import PUBLISH_TIMEOUT, RedisChanges, publish
from tests.changes.listening import LONG, SHORT, commit, meanwhile, seconds, settled, told
from tests.harness import eventually
from tests.servers import Redis

pytestmark = [pytest.mark.once, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def changes(
    redis_server: Redis, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisChanges]:
    """What hears notices, and nothing else: it looks now and then only where it is cut off."""
    monkeypatch.setattr(RedisChanges, "safety_seconds", LONG * 2)
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    with watch("default") as watched:
        assert isinstance(watched, RedisChanges)
        settled(watched)
        yield watched


def test_a_commit_between_two_waits_ends_the_second(changes: Changes) -> None:
    commit()
    assert changes.wait(LONG)
    assert not changes.wait(SHORT)


def test_a_commit_ends_a_wait(changes: Changes) -> None:
    for _ in range(20):
        with meanwhile(commit):
            assert seconds(lambda: changes.wait(LONG)) < LONG / 2
    assert not changes.wait(SHORT)


def test_a_transaction_tells_once_and_when_it_has_committed(changes: Changes) -> None:
    with CaptureQueriesContext(connections["default"]) as executed, transaction.atomic():
        for _ in range(3):
            announce("default")
        assert not changes.wait(SHORT)
        assert len(connections["default"].run_on_commit) == 1
    assert changes.wait(LONG)
    assert not [query for query in executed if "NOTIFY" in query["sql"]]


def test_a_rollback_does_not_count(changes: Changes) -> None:
    with transaction.atomic():
        announce("default")
        transaction.set_rollback(True)
    assert not changes.wait(SHORT)
    with transaction.atomic():
        with transaction.atomic():
            announce("default")
            transaction.set_rollback(True)
        announce("default")
    assert changes.wait(LONG)


def test_wake_is_no_commit(changes: Changes) -> None:
    with meanwhile(changes.wake):
        assert not changes.wait(LONG)


def test_a_notice_that_redis_lost_costs_a_second(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisChanges, "safety_seconds", 1)
    with watch("default") as changes:
        settled(changes)
        # It was due since the last look began.
        assert SHORT < seconds(lambda: changes.wait(LONG)) < LONG / 2


def test_while_redis_is_down_it_looks_on_the_timer(
    changes: RedisChanges, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tasks_app.changes")
    commit()
    assert changes.wait(LONG)
    redis_server.kill()
    for _ in range(10):
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        commit()
    changes.wake()
    assert seconds(lambda: changes.pause(LONG)) < LONG / 2
    redis_server.start()
    settled(changes)

    def heard() -> bool:
        commit()
        return changes.wait(SHORT)

    eventually(heard)
    # One line for each end of the wire, however many commits: those who hear, those who tell.
    lines = told(caplog)
    for meaning in (
        "looking for changes on a timer until it does",
        "commits here may be noticed a second late",
    ):
        assert sum(line.endswith(meaning) for line in lines) == 1
    assert lines.count("Redis answers again") == 2
    assert len(lines) == 4


def test_telling_neither_fails_nor_waits_for_a_server_that_is_held(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    publish()
    redis_server.hold()
    first = seconds(publish)
    assert first > PUBLISH_TIMEOUT * 0.9
    # Whatever the load of the machine: a thousand tries would take minutes.
    assert seconds(lambda: [publish() for _ in range(1000)]) < LONG
    assert len(told(caplog)) == 1
    redis_server.hold(False)


def test_telling_does_not_fail_where_there_is_no_server(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.kill()
    for _ in range(100):
        commit()
    assert len(told(caplog)) == 1
    assert "Redis does not answer" in told(caplog)[0]


def test_who_cannot_subscribe_at_first_does_later(redis_server: Redis, settings: Any) -> None:
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    redis_server.kill()
    with watch("default") as changes:
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        redis_server.start()
        settled(changes)


def test_the_subscription_ends_with_the_watch(redis_server: Redis) -> None:
    with watch("default") as changes:
        settled(changes)
        assert redis_server.listeners() == 1
    eventually(lambda: redis_server.listeners() == 0)
