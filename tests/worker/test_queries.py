from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, ProgrammingError, connection, transaction

from tasks_app.worker.interruption import Queries, discard, end_left_behind

pytestmark = pytest.mark.django_db(transaction=True)

FOR_EVER = "n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def test_thread_of_a_running_task_is_not_rolled_back() -> None:
    """It belongs to no run, so its owner is unknown."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1").fetchall()
            begun.set()
            done.wait(30)
        connection.close()

    thread = threading.Thread(target=work, name="own")
    thread.start()
    try:
        assert begun.wait(30)
        assert end_left_behind([Queries()]) == []
    finally:
        done.set()
        thread.join()


@pytest.mark.once
@pytest.mark.parametrize("rows_unread", [False, True])
@pytest.mark.parametrize("query_runs", [False, True])
def test_transaction_of_an_ended_task_releases_its_lock(
    rows_unread: bool, query_runs: bool
) -> None:
    """The thread may be doing anything, and continues."""
    begun, done = threading.Event(), threading.Event()
    failed: list[str] = []

    def work() -> None:
        try:
            with transaction.atomic():
                User.objects.create(username="left open")
                with connection.cursor() as many, connection.cursor() as other:
                    many.execute(f"WITH RECURSIVE {FOR_EVER} SELECT i FROM n")
                    many.fetchone() if rows_unread else many.close()
                    if query_runs:
                        connection.connection.set_progress_handler(begun.set, 1000)
                        with suppress(OperationalError):
                            other.execute(f"WITH RECURSIVE {FOR_EVER} SELECT count(*) FROM n")
                    begun.set()
                    done.wait(30)
        except ProgrammingError as error:
            failed.append(str(error))
        connection.close()

    thread = threading.Thread(target=work, name="left-behind")
    thread.start()
    try:
        assert begun.wait(30)
        assert end_left_behind([]) == ["left-behind"]
        # Waits for the lock up to the site's timeout.
        User.objects.create(username="written")
    finally:
        done.set()
        thread.join()
    assert failed == ["Cannot operate on a closed database."]
    assert [user.username for user in User.objects.all()] == ["written"]


def test_discarded_connection_does_not_return_to_a_pool() -> None:
    """SQLite has no pool, and an in-memory database would be lost with its connection."""
    connection.ensure_connection()
    discard()
    assert connection.is_usable() is (connection.vendor == "sqlite")
    connection.close()
