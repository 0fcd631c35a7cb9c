"""LISTEN and NOTIFY, with a real server whose connections are cut, stopped and started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from tasks_app.notify import Changes, announce, watch
from tasks_app.notify.postgresql import PostgreSQLChanges
from tests.harness import eventually
from tests.notify.listening import LONG, SHORT, commit, logged_outages, meanwhile, seconds, settled
from tests.servers import PostgreSQL, postgresql, used

pytestmark = pytest.mark.once


@pytest.fixture
def changes(
    server: PostgreSQL, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgreSQLChanges]:
    """Changes that notice only through notifications, and use the timer only during an outage."""
    monkeypatch.setattr(PostgreSQLChanges, "safety_seconds", LONG * 2)
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    with watch("default") as watched:
        assert isinstance(watched, PostgreSQLChanges)
        settled(watched)
        yield watched


def test_commit_between_two_waits_ends_the_second(changes: Changes) -> None:
    commit()
    assert changes.wait(LONG)
    assert not changes.wait(0)
    commit()
    commit()
    assert changes.wait(LONG)
    # The second notification may arrive a moment later.
    while changes.wait(SHORT):
        pass


def test_commit_ends_a_wait(changes: Changes) -> None:
    for _ in range(20):
        with meanwhile(commit):
            assert seconds(lambda: changes.wait(LONG)) < LONG / 2
    assert not changes.wait(SHORT)


def test_transaction_counts_at_its_commit(changes: Changes) -> None:
    with transaction.atomic():
        announce("default")
        assert not changes.wait(SHORT)
    assert changes.wait(LONG)


def test_rollback_does_not_count(changes: Changes) -> None:
    with transaction.atomic():
        announce("default")
        transaction.set_rollback(True)
    assert not changes.wait(SHORT)
    commit()
    assert changes.wait(LONG)


def test_announcement_after_a_savepoint_rollback_is_sent(changes: Changes) -> None:
    with transaction.atomic():
        with transaction.atomic():
            announce("default")
            transaction.set_rollback(True)
        announce("default")
    assert changes.wait(LONG)
    with transaction.atomic(), transaction.atomic():
        announce("default")
        transaction.set_rollback(True)
    assert not changes.wait(SHORT)


def test_transaction_notifies_once(changes: Changes) -> None:
    with CaptureQueriesContext(connections["default"]) as executed:
        commit(times=3)
    assert [query["sql"] for query in executed] == ["BEGIN", "NOTIFY tasks_app", "COMMIT"]
    assert changes.wait(LONG)
    assert not changes.wait(SHORT)


def test_idle_listener_does_nothing(changes: PostgreSQLChanges, server: PostgreSQL) -> None:
    """It neither wakes up nor queries the server."""
    calls: list[float] = []
    sleep = changes._sleep
    changes._sleep = lambda timeout, *others: calls.append(timeout) or sleep(timeout, *others)  # type: ignore[method-assign,func-returns-value]

    def asked() -> list[tuple[Any, ...]]:
        return server.ask(
            "SELECT state_change FROM pg_stat_activity WHERE query = 'LISTEN tasks_app'"
        )

    before = asked()
    assert not changes.wait(SHORT * 5)
    assert len(calls) == 1
    assert asked() == before


def test_lost_notification_delays_by_seconds(
    server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgreSQLChanges, "safety_seconds", 1)
    with watch("default") as changes:
        settled(changes)
        # The interval began before the last check ended.
        assert SHORT < seconds(lambda: changes.wait(LONG)) < LONG / 2


def test_wake_is_not_a_commit(changes: Changes) -> None:
    with meanwhile(changes.wake):
        assert not changes.wait(LONG)


def test_cut_line_is_replaced(
    changes: PostgreSQLChanges, server: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tasks_app.notify")
    [line] = server.listeners()
    with meanwhile(server.cut):
        assert changes.wait(LONG), "a notification may have been missed"
    connections["default"].close()
    settled(changes)
    assert server.listeners() - {line}
    commit()
    assert changes.wait(LONG)
    trouble, end = logged_outages(caplog)
    assert trouble.startswith("LISTEN on PostgreSQL does not answer (")
    assert trouble.endswith("); looking for changes on a timer until it does")
    assert end == "LISTEN on PostgreSQL answers again"


@pytest.mark.slow
def test_timer_and_wake_work_while_the_server_is_down(
    settings: Any, transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tasks_app.notify")
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    with postgresql() as own, used(own), watch("default") as changes:
        settled(changes)
        connections["default"].close()
        own.stop()
        for _ in range(10):
            assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        changes.wake()
        assert seconds(lambda: changes.pause(LONG)) < LONG / 2
        own.start()
        settled(changes)
        commit()
        assert changes.wait(LONG)
    assert [line.split(" (")[0] for line in logged_outages(caplog)] == [
        "LISTEN on PostgreSQL does not answer",
        "LISTEN on PostgreSQL answers again",
    ]


def test_timer_is_used_if_listen_fails(
    server: PostgreSQL, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.TASK_POLL_INTERVAL_SECONDS = SHORT
    connections["default"].settings_dict["OPTIONS"] = {"options": "-c nonsense"}
    with watch("default") as changes:
        for _ in range(5):
            eventually(lambda: changes.wait(LONG))
        eventually(lambda: changes.wait(LONG) and logged_outages(caplog))
    assert len(logged_outages(caplog)) == 1
    assert "nonsense" in logged_outages(caplog)[0]


def test_without_listen_the_timer_is_used_and_nothing_is_sent(
    server: PostgreSQL, settings: Any
) -> None:
    settings.TASK_LISTEN = False
    with watch("default") as changes:
        assert type(changes) is Changes
    with CaptureQueriesContext(connections["default"]) as executed:
        commit()
    assert [query["sql"] for query in executed] == ["BEGIN", "COMMIT"]


def test_line_is_closed_with_the_watch(server: PostgreSQL) -> None:
    with watch("default") as changes:
        settled(changes)
        assert len(server.listeners()) == 1
    eventually(lambda: not server.listeners())


def test_watch_closed_before_it_listens_leaves_no_line(server: PostgreSQL) -> None:
    for _ in range(10):
        with watch("default"):
            pass
    eventually(lambda: not any("listen" in t.name for t in threading.enumerate()))
    eventually(lambda: not server.listeners())
