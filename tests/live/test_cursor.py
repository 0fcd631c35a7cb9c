"""Cursors: which facts a viewer has had, by ids or by PostgreSQL's snapshots."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from tasks_app.live import cursor as cursor_module
from tasks_app.live.cursor import IN_PROGRESS_MAX, Cursor, Snapshot
from tasks_app.models import TaskEvent
from tasks_app.states import EventType
from tests.rows import enqueued, saved


def snapshot(xmax: int, *in_progress: int) -> Snapshot:
    return Snapshot(xmax, frozenset(in_progress))


snapshots = st.builds(
    lambda xmax, below: Snapshot(xmax, frozenset(x for x in below if x < xmax)),
    st.integers(1, 1000),
    st.sets(st.integers(1, 1000), max_size=4),
)
cursors = st.builds(Cursor, st.integers(0, 2**63 - 1)) | st.builds(
    Cursor, st.integers(0, 2**63 - 1), snapshots, snapshots, st.sampled_from(["", "0a1b2c3d"])
)


# Snapshots.


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("10:20:10,14,15", snapshot(20, 10, 14, 15)),
        ("20:20:", snapshot(20)),
        ("7:8:7", snapshot(8, 7)),
    ],
)
def test_snapshot_is_read_in_postgresqls_format(text: str, result: Snapshot) -> None:
    assert Snapshot.read(text) == result
    assert Snapshot.parse(str(result)) == result


def test_snapshot_of_many_transactions_is_shortened() -> None:
    """So that ids stay short. The shortened snapshot sees less, never more."""
    listed = list(range(1_000, 9_000, 20))
    result = Snapshot.read(f"1000:2000000000:{','.join(map(str, listed))}")
    assert len(result.in_progress) == IN_PROGRESS_MAX
    assert result.xmax == listed[IN_PROGRESS_MAX]
    assert result.sees(1_001)
    assert not any(result.sees(xid) for xid in listed)
    assert len(str(Cursor(2**62, result, result, "0a1b2c3d"))) < 400


@pytest.mark.parametrize(
    ("transaction", "seen"), [(9, True), (10, False), (12, True), (14, False), (20, False)]
)
def test_snapshot_sees(transaction: int, seen: bool) -> None:
    assert snapshot(20, 10, 14).sees(transaction) is seen


# Cursors as text.


@given(cursors)
def test_cursor_survives_its_text_form(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    ("cursor", "text"),
    [
        (Cursor(7), "7"),
        (Cursor(7, snapshot(20), snapshot(30, 21), "ab"), "7@14@1e.9@ab"),
        (Cursor(7, snapshot(30, 21, 20), snapshot(30, 21, 20), "ab"), "7@1e.9.1@@ab"),
    ],
)
def test_text_of_a_cursor(cursor: Cursor, text: str) -> None:
    assert str(cursor) == text
    assert Cursor.parse(text) == cursor


@pytest.mark.parametrize(
    "text", ["", "x", "7@", "7@1", "7@1@", "7@a:b:@c:d:", "7@1.2@@", "7@x@@", "7@1@1@@", "7@-1@@"]
)
def test_invalid_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the endpoint words it
        Cursor.parse(text)


@pytest.mark.parametrize("text", ["7@20:20:@21:30:21", "7@1:30:4,9@1:30:4,9"])
def test_id_of_an_earlier_version_belongs_to_another_history(text: str) -> None:
    """It is no error, but nothing is resumed: a page may be open during a deploy."""
    assert not Cursor(9, snapshot(50), snapshot(50)).continues(Cursor.parse(text))


# Continuity.


def test_continues() -> None:
    then = Cursor(7, snapshot(20), snapshot(30, 21), "ab")
    now = Cursor(9, snapshot(30), snapshot(30), "ab")
    assert now.continues(then)
    assert now.continues(then.beginning())
    assert not replace(now, timeline="cd").continues(then)
    behind = Cursor(7, snapshot(29), snapshot(29), "ab")
    assert not behind.continues(then)
    assert Cursor(3).continues(Cursor(7))
    assert now.continues(Cursor(0))


# Coverage.


def test_ids_suffice_without_snapshots() -> None:
    cursor = Cursor(7)
    assert [cursor.covers(number, None) for number in (6, 7, 8)] == [True, True, False]


def test_late_transaction_is_not_covered_by_a_greater_id() -> None:
    """Transaction 15 took the ids 1 and 2, and committed after id 3 of transaction 16 was sent."""
    cursor = Cursor(3, snapshot(15), snapshot(17, 15))
    assert cursor.covers(3, 16)
    assert not cursor.covers(1, 15)
    assert cursor.covers(9, 14)
    assert not cursor.covers(4, 16)
    assert not cursor.covers(1, 17)


def test_position_within_a_batch_counts_by_id() -> None:
    before, until = Cursor(5, snapshot(15), snapshot(15)), Cursor(9, snapshot(20), snapshot(20))
    had = before.at(7, until)
    assert [had.covers(number, 16) for number in (6, 7, 8)] == [True, True, False]
    assert had.covers(100, 14)


@given(st.data())
def test_earliest_covers_only_what_all_cover(data: st.DataObject) -> None:
    """The cursors are from one database, whose later snapshots see more."""
    history = [snapshot(10, 4, 7), snapshot(12, 7, 10, 11), snapshot(12, 7), snapshot(14)]
    index = st.integers(0, 3)

    def drawn() -> Cursor:
        before, batch = sorted((data.draw(index), data.draw(index)))
        return Cursor(data.draw(st.integers(0, 6)), history[before], history[batch])

    several = [drawn(), drawn(), drawn()]
    earliest = Cursor.earliest(several)
    for number, xid in itertools.product(range(8), range(3, 15)):
        if earliest.covers(number, xid):
            assert all(one.covers(number, xid) for one in several)
    assert Cursor.earliest([several[0]] * 2) == several[0]
    assert Cursor.earliest([Cursor(7), Cursor(4)]) == Cursor(4)


@given(cursors)
def test_beginning_covers_nothing(cursor: Cursor) -> None:
    beginning = cursor.beginning()
    assert (beginning.before is None) == (cursor.before is None)
    assert not beginning.covers(1, None if cursor.before is None else 1)


# Queries.


@pytest.mark.django_db
@given(st.data())
def test_query_matches_coverage(data: st.DataObject) -> None:
    """`rest` selects what one cursor does not cover and the other does."""
    ids = list(TaskEvent.objects.values_list("pk", flat=True))
    if not ids:
        task = saved()
        with transaction.atomic():
            ids = [
                TaskEvent.objects.create(
                    task=task, event_type=EventType.LOG, timestamp=timezone.now(), transaction=xid
                ).pk
                for xid in (10, 12, 11, 11, 14, 13, 10)
            ]
    numbers = st.integers(min(ids) - 1, max(ids) + 1)
    early = st.builds(
        lambda xmax, below: Snapshot(xmax, frozenset(x for x in below if x < xmax)),
        st.integers(9, 15),
        st.sets(st.integers(9, 15), max_size=3),
    )
    had = data.draw(st.builds(Cursor, numbers, early, early))
    until = data.draw(st.builds(lambda n, s: Cursor(n, s, s), numbers, early))
    expected = [
        event.pk
        for event in TaskEvent.objects.order_by("id")
        if event.transaction is not None
        and not had.covers(event.pk, event.transaction)
        and until.before is not None
        and until.before.sees(event.transaction)
    ]
    assert [event.pk for event in had.rest(TaskEvent.objects.all(), until)] == expected


@pytest.mark.django_db
def test_query_by_ids_alone() -> None:
    events = [enqueued().events.get().pk for _ in range(4)]
    result = Cursor(events[0]).rest(TaskEvent.objects.all(), Cursor(events[2]))
    assert [event.pk for event in result] == events[1:3]


# Now.


@pytest.mark.django_db
def test_now_covers_what_is_committed() -> None:
    now = Cursor.now("default")
    assert now.id == 0
    assert (now.before is None) is (connection.vendor != "postgresql")
    assert now.before == now.batch
    assert bool(now.timeline) is (connection.vendor == "postgresql")


@pytest.mark.django_db
def test_database_without_timeline_has_cursors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even in a transaction, which the refused query must not break."""
    for name in ("_with_timeline", "_without_timeline"):
        monkeypatch.setattr(cursor_module, name, set())
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            cursor.execute(
                "CREATE ROLE ordinary; GRANT ALL ON ALL TABLES IN SCHEMA public TO ordinary"
            )
            cursor.execute("SET LOCAL ROLE ordinary")
    for _ in range(2):
        assert (connection.vendor == "postgresql") is (Cursor.now("default").before is not None)
    assert Cursor.now("default").timeline == ""


@pytest.mark.django_db(transaction=True)
def test_each_fact_comes_once_however_late_it_commits() -> None:
    """A transaction takes its ids first and commits last. On SQLite it makes the others wait."""
    wrote, go_on = threading.Event(), threading.Event()

    def late() -> None:
        try:
            with transaction.atomic():
                enqueued(name="late")
                wrote.set()
                if connection.vendor == "postgresql":
                    go_on.wait(20)
        finally:
            connections.close_all()

    cursor = Cursor.now("default")
    came: list[str] = []

    def follow(cursor: Cursor) -> Cursor:
        until = Cursor.now("default")
        facts = cursor.rest(TaskEvent.objects.select_related("task"), until)
        came.extend(event.task.name for event in facts)
        return until

    thread = threading.Thread(target=late)
    thread.start()
    assert wrote.wait(20)
    if connection.vendor != "postgresql":
        thread.join()
    for number in range(3):
        enqueued(name=f"{number}")
        cursor = follow(cursor)
    go_on.set()
    thread.join()
    cursor = follow(cursor)
    assert sorted(came) == ["0", "1", "2", "late"]
    assert came.index("late") == (3 if connection.vendor == "postgresql" else 0)
    follow(cursor)
    assert len(came) == 4
