"""Notices over Redis, with a real server that is killed, paused and started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from tasks_app.notify import Changes, announce, watch
from tasks_app.notify.redis import PUBLISH_TIMEOUT, RedisChanges, publish
from tests.harness import eventually
from tests.notify.listening import LONG, SHORT, commit, logged_outages, meanwhile, seconds, settled
from tests.servers import Redis

pytestmark = [pytest.mark.once, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def changes(
    redis_server: Redis, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisChanges]:
    """Changes that notice only through notifications, and use the timer only during an outage."""
    monkeypatch.setattr(RedisChanges, "safety_seconds", LONG * 2)
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    with watch("default") as watched:
        assert isinstance(watched, RedisChanges)
        settled(watched)
        yield watched


def test_commit_between_two_waits_ends_the_second(changes: Changes) -> None:
    commit()
    assert changes.wait(LONG)
    assert not changes.wait(SHORT)


def test_commit_ends_a_wait(changes: Changes) -> None:
    for _ in range(20):
        with meanwhile(commit):
            assert seconds(lambda: changes.wait(LONG)) < LONG / 2
    assert not changes.wait(SHORT)


def test_transaction_publishes_once_after_its_commit(changes: Changes) -> None:
    with CaptureQueriesContext(connections["default"]) as executed, transaction.atomic():
        for _ in range(3):
            announce("default")
        assert not changes.wait(SHORT)
        assert len(connections["default"].run_on_commit) == 1
    assert changes.wait(LONG)
    assert not [query for query in executed if "NOTIFY" in query["sql"]]


def test_rollback_does_not_count(changes: Changes) -> None:
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


def test_wake_is_not_a_commit(changes: Changes) -> None:
    with meanwhile(changes.wake):
        assert not changes.wait(LONG)


def test_lost_message_delays_by_a_second(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisChanges, "safety_seconds", 1)
    with watch("default") as changes:
        settled(changes)
        # The interval began before the last check ended.
        assert SHORT < seconds(lambda: changes.wait(LONG)) < LONG / 2


def test_timer_is_used_while_redis_is_down(
    changes: RedisChanges, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tasks_app.notify")
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

    def notified() -> bool:
        commit()
        return changes.wait(SHORT)

    eventually(notified)
    # However many commits: one line for the subscriber and one for the publisher.
    lines = logged_outages(caplog)
    for meaning in (
        "looking for changes on a timer until it does",
        "commits here may be noticed a second late",
    ):
        assert sum(line.endswith(meaning) for line in lines) == 1
    assert lines.count("Redis answers again") == 2
    assert len(lines) == 4


def test_publish_neither_fails_nor_blocks_while_redis_hangs(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    publish()
    redis_server.hold()
    first = seconds(publish)
    assert first > PUBLISH_TIMEOUT * 0.9
    # True on a busy machine too: a thousand attempts would take minutes.
    assert seconds(lambda: [publish() for _ in range(1000)]) < LONG
    assert len(logged_outages(caplog)) == 1
    redis_server.hold(False)


def test_publish_does_not_fail_while_redis_is_down(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.kill()
    for _ in range(100):
        commit()
    assert len(logged_outages(caplog)) == 1
    assert "Redis does not answer" in logged_outages(caplog)[0]


def test_subscribe_is_retried_until_redis_is_up(redis_server: Redis, settings: Any) -> None:
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    redis_server.kill()
    with watch("default") as changes:
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        redis_server.start()
        settled(changes)


def test_subscription_ends_with_the_watch(redis_server: Redis) -> None:
    with watch("default") as changes:
        settled(changes)
        assert redis_server.listeners() == 1
    eventually(lambda: redis_server.listeners() == 0)
