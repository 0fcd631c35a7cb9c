"""How outcomes are written and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import pytest
import sentry_sdk
from django.core import mail
from django.db import connection
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.housekeeping import rescue
from tests.docs.pages import GUIDE, snippets
from tests.harness import begins, ends
from tests.more_tasks import NAIVE, ODD_ERRORS, RaisesOdd, SaysNaive
from tests.rows import claimed, fresh, lapse, last_fact, worker
from tests.tasks import Fail, Quit, Steps, WrongResult
from tests.worker.conftest import Working

pytestmark = pytest.mark.django_db(transaction=True)

EVIL = "x\x1b]0;owned\x07\x1b[2J\r\n2026-01-01 00:00:00 INFO all is well\u2028more"


def drain() -> None:
    Coordinator(1, drain=True).run()


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Run the waiting tasks, and return the records of failures."""
    with caplog.at_level(logging.ERROR, logger="tasks_app.worker"):
        drain()
    return caplog.records


def test_failure_is_logged_with_its_exception(caplog: pytest.LogCaptureFixture) -> None:
    started = task_service.start_task(Fail, {"message": "it broke"})
    [record] = failures(caplog)
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(
        f"Task {started.task_id} (tests.tasks.Fail) failed after "
    )
    assert record.getMessage().endswith(": ValueError: it broke")
    assert record.exc_info
    assert repr(record.exc_info[1]) == "ValueError('it broke')"
    assert "in execute" in logging.Formatter().format(record)
    assert (record.task_id, record.task_name, record.error_type) == (  # type: ignore[attr-defined]
        str(started.task_id),
        "tests.tasks.Fail",
        "ValueError",
    )


def test_error_cannot_control_terminals_or_forge_records(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task_service.start_task(Fail, {"message": EVIL})
    [record] = failures(caplog)
    formatted = logging.Formatter("%(levelname)s %(message)s").format(record)
    assert set(formatted) - {"\n"} == {char for char in formatted if char.isprintable()}
    first, *others = formatted.splitlines()
    assert first.endswith(
        r"ValueError: x\x1b]0;owned\x07\x1b[2J\r\n2026-01-01 00:00:00 INFO all is well\u2028more"
    )
    assert all(line.startswith("    ") for line in others)


def test_any_exception_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An exception's class may raise when it is converted to text."""
    task_service.start_many(RaisesOdd, [{"which": which} for which in ODD_ERRORS])
    records = failures(caplog)
    assert len(records) == len(ODD_ERRORS)
    for record in records:
        assert logging.Formatter().format(record)


# Error reporters, configured as in the guide.


def configured(word: str) -> dict[str, Any]:
    """Run the block of the guide with this word, and return its namespace."""
    [text] = [one.text for one in snippets(GUIDE, "python") if word in one.text]
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    return namespace


class Kept(Transport):
    """Records the events instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        if event := envelope.get_event():
            self.events.append(dict(event))


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    kept = Kept()
    init = sentry_sdk.init

    def init_here(**options: Any) -> None:
        # Sentry's other integrations patch code that this test does not need.
        logs = [LoggingIntegration()]
        init(**options, transport=kept, default_integrations=False, integrations=logs)

    monkeypatch.setattr(sentry_sdk, "init", init_here)
    yield kept
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_sentry_gets_and_groups_exceptions(sentry: Kept) -> None:
    configured("sentry_sdk.init")
    for task in (Fail, Fail, WrongResult, Quit):
        task_service.start_task(task)
    drain()
    sentry_sdk.flush()
    last_frames = []
    for event in sentry.events:
        [*_, exception] = event["exception"]["values"]
        frame = exception["stacktrace"]["frames"][-1]
        last_frames.append((exception["type"], frame["module"], frame["function"]))
    assert sorted(last_frames) == [
        ("InvalidResult", "tasks_app.tasks.base", "validate_result"),
        ("SystemExit", "tests.tasks", "execute"),
        ("ValueError", "tests.tasks", "execute"),
        ("ValueError", "tests.tasks", "execute"),
    ]
    for event in sentry.events:
        assert event["tags"]["task"] in event["logentry"]["formatted"]
        # Two classes with invalid results have the same frames.
        assert event["fingerprint"] == ["{{ default }}", event["tags"]["task"]]
    assert len({event["extra"]["task_id"] for event in sentry.events}) == 4


def test_admin_mails_have_frames_and_a_subject_per_error(settings: Any) -> None:
    ada = "ada@example.com"
    settings.ADMINS = [ada if django.VERSION >= (6,) else ("Ada", ada)]
    # Django 6.1 warns if this setting is missing.
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
    handler = configured("AdminEmailHandler")["TaskMails"]()
    handler.setLevel(logging.ERROR)
    logger = logging.getLogger("tasks_app")
    logger.addHandler(handler)
    try:
        ids = [task_service.start_task(task).task_id for task in (Fail, Fail, WrongResult)]
        drain()
    finally:
        logger.removeHandler(handler)
    assert sorted(message.subject for message in mail.outbox) == [
        "[Django] tests.tasks.Fail: ValueError",
        "[Django] tests.tasks.Fail: ValueError",
        "[Django] tests.tasks.WrongResult: InvalidResult",
    ]
    bodies = [str(message.body) for message in mail.outbox]
    assert all(any(str(task_id) in body for body in bodies) for task_id in ids)
    assert all(", in " in body for body in bodies)
    assert sum("ValueError: it broke" in body for body in bodies) == 2


# Texts and results that the database refuses.


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
