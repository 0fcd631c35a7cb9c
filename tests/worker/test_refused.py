"""Texts and results that the database refuses affect only their own task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection

from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.worker.housekeeping import rescue
from tests.harness import begins, ends
from tests.more_tasks import NAIVE, SaysNaive
from tests.rows import claimed, fresh, lapse, last_fact, worker
from tests.tasks import Steps
from tests.worker.conftest import Working

pytestmark = pytest.mark.django_db(transaction=True)

#: Imitates a database in SQL_ASCII, which stores any text in a column but refuses escapes in JSON.
#: It may refuse its own error messages too.
SQLITE = r"""
CREATE TRIGGER narrow BEFORE INSERT ON tasks_app_taskevent
WHEN NEW.data LIKE '%\u00ef%' OR NEW.data LIKE '%no place%'
BEGIN SELECT RAISE(ABORT, '{said}'); END
"""
POSTGRESQL = """
CREATE FUNCTION narrow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.data::text LIKE '%%ï%%' OR NEW.data::text LIKE '%%no place%%' THEN
        RAISE EXCEPTION E'{said}\\nin words: ï' USING ERRCODE = 'untranslatable_character';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER narrow BEFORE INSERT ON tasks_app_taskevent
    FOR EACH ROW EXECUTE FUNCTION narrow();
"""


@contextmanager
def narrow(message: str) -> Iterator[None]:
    is_sqlite = connection.vendor == "sqlite"
    with connection.cursor() as cursor:
        cursor.execute((SQLITE if is_sqlite else POSTGRESQL).replace("{said}", message))
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER narrow" if is_sqlite else "DROP FUNCTION narrow() CASCADE")


def test_refused_text_affects_neither_neighbours_nor_the_worker(
    start: Callable[..., Working], reins: Path
) -> None:
    with narrow("no room for it"):
        working = start(5)
        neighbour = task_service.start_task(Steps, {"reins": reins})
        begins(neighbour.task_id)
        started_by_kind = {
            how: task_service.start_task(SaysNaive, {"how": how})
            for how in ("progress", "log", "result", "error", "public")
        }
        ended = {how: ends(started.task_id) for how, started in started_by_kind.items()}
        assert {how: task.status for how, task in ended.items()} == {
            "progress": Status.COMPLETED,
            "log": Status.COMPLETED,
            "result": Status.FAILED,
            "error": Status.FAILED,
            "public": Status.FAILED,
        }
        assert ended["public"].public_error == r"na\xefve \u2192"
        assert ended["progress"].progress_text == r"na\xefve \u2192"
        lines = [
            event.data["message"]
            for event in ended["log"].events.filter(event_type=EventType.LOG).order_by("id")
        ]
        assert lines == [r"na\xefve \u2192", r"na\xefve \u2192, again"]
        assert ended["result"].error_message == (
            "The database refused what this task returned or said: no room for it"
        )
        assert (ended["error"].error_type, ended["error"].error_message) == (
            "ValueError",
            r"na\xefve \u2192",
        )
        reins.write_text("10")
        assert ends(neighbour.task_id).result == "done"
        assert working.end() == 6


def test_error_message_of_the_database_may_be_refused_too(
    start: Callable[..., Working],
) -> None:
    with narrow("no place for it"):
        start(1)
        task = ends(task_service.start_task(SaysNaive, {"how": "result"}).task_id)
        assert task.error_message == (
            "The database refused what this task returned or said. The worker's log says why."
        )


def test_lost_task_is_rescued_despite_refused_text() -> None:
    odd, _ = claimed(worker(hostname="gone"))
    other, _ = claimed(worker(hostname="gone too"))
    for task, text in ((odd, NAIVE), (other, "plain")):
        task.progress_text = text
        task.save()
        lapse(task, timedelta(days=1))
    with narrow("no room for it"):
        assert [rescue() for _ in range(3)] == [1, 1, 0]
    assert {fresh(task).error_type for task in (odd, other)} == {"WorkerLost"}
    assert last_fact(odd).data["progress"]["text"] == ""
    assert last_fact(other).data["progress"]["text"] == "plain"
