"""`manage.py cleanup_tasks`, as cron runs it."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from dataclasses import fields
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from tqdm import tqdm

from tasks_app.management.commands.cleanup_tasks import duration, report
from tasks_app.management.terminal import Exit
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.worker.housekeeping import CleanupSummary
from tests.docs.pages import GUIDE, section
from tests.rows import fresh, lapse, row, saved, snapshot, worker

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = 7 * 86400
    settings.TASK_FAILED_RETENTION_SECONDS = 30 * 86400
    # The command waits this long before it treats a worker as lost.
    settings.TASK_LEASE_SECONDS, settings.TASK_HEARTBEAT_SECONDS = 1, 0.4


@pytest.fixture
def aged() -> None:
    for status in Status:
        for days in (1, 10, 40):
            saved(status, name=f"{status} {days}", age=timedelta(days=days), worker=None)
    # Give the running tasks valid leases.
    Task.objects.running().update(lease_expires_at=timezone.now() + timedelta(days=1))


def cleanup(*options: str) -> str:
    out = StringIO()
    call_command("cleanup_tasks", *options, stdout=out)
    return out.getvalue()


def left() -> set[str]:
    return set(Task.objects.filter(finished_at__isnull=False).values_list("name", flat=True))


@pytest.mark.usefixtures("aged")
def test_prunes_by_the_settings() -> None:
    assert cleanup() == (
        "Removed 5 finished tasks; rescued 0 from lost workers; removed 0 old worker records.\n"
    )
    assert left() == {"completed 1", "cancelled 1", "failed 1", "failed 10"}
    assert Task.objects.unfinished().count() == 6


@pytest.mark.usefixtures("aged")
def test_older_than_overrides_the_settings() -> None:
    cleanup("--older-than", "12h")
    assert left() == set()


@pytest.mark.usefixtures("aged")
def test_older_than_may_keep_longer_than_the_settings() -> None:
    cleanup("--older-than", "20d")
    assert left() == {
        f"{s} {days}" for s in ("completed", "cancelled", "failed") for days in (1, 10)
    }


@pytest.mark.usefixtures("aged")
def test_status_restricts_the_prune() -> None:
    cleanup("--older-than", "0", "--status", "failed", "--status", "cancelled")
    assert left() == {"completed 1", "completed 10", "completed 40"}


@pytest.mark.usefixtures("aged")
def test_dry_run_changes_nothing() -> None:
    worker(heartbeat_at=timezone.now() - timedelta(days=9))
    lapse(saved(Status.RUNNING), timedelta(days=1))
    before, workers = snapshot(), Worker.objects.count()
    assert cleanup("--dry-run") == "Would remove 5 finished tasks.\n"
    assert json.loads(cleanup("--dry-run", "--json")) == {"would_remove": 5}
    assert (snapshot(), Worker.objects.count()) == (before, workers)


@pytest.mark.usefixtures("aged")
def test_json_output() -> None:
    worker(heartbeat_at=timezone.now() - timedelta(days=9))
    lost = saved(Status.RUNNING)
    lapse(lost, timedelta(days=1))
    nothing = {
        "taken_back": 0,
        "removed": 0,
        "kept": 0,
        "workers_removed": 0,
        "workers_lost": 0,
        "complete": True,
    }
    done = nothing | {"taken_back": 1, "removed": 5, "workers_removed": 1}
    assert json.loads(cleanup("--json")) == done
    assert fresh(lost).status == Status.FAILED
    assert json.loads(cleanup("--json")) == nothing


def test_summary_reports_problems(settings: Any) -> None:
    worker(heartbeat_at=timezone.now() - timedelta(hours=1))
    assert cleanup() == (
        "Removed 0 finished tasks; rescued 0 from lost workers; "
        "removed 0 old worker records; 1 workers never signed off.\n"
    )
    assert report(CleanupSummary(removed=3, kept=2)) == (
        "Stopped early: removed 3 finished tasks; rescued 0 from lost workers; "
        "removed 0 old worker records; 2 tasks could not be removed (see the log)."
    )


def test_all_tasks_of_lost_workers_are_rescued() -> None:
    """Even if there are more than one rescue takes."""
    Task.objects.bulk_create(row(Status.RUNNING) for _ in range(120))
    Task.objects.update(lease_expires_at=timezone.now() - timedelta(days=1))
    assert json.loads(cleanup("--json"))["taken_back"] == 120


# Terminal output.


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("aged")
def test_terminal_shows_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cleanup().startswith("Removed 5 finished tasks;")
    assert "Removing finished tasks:   0%|" in terminal.getvalue()
    assert "| 5/5 [" in terminal.getvalue()


@pytest.mark.usefixtures("aged")
def test_cron_gets_only_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureQueriesContext(connection) as executed:
        cleanup()
    assert capsys.readouterr().err == ""
    # The count that only the bar needs is skipped.
    assert not [
        query for query in executed if "COUNT(*)" in query["sql"] and "finished_at" in query["sql"]
    ]


def test_dry_run_reads_no_rows() -> None:
    with CaptureQueriesContext(connection) as executed:
        cleanup("--dry-run")
    counts = [query["sql"] for query in executed if "tasks_app" in query["sql"]]
    assert len(counts) == 3
    assert all(sql.startswith("SELECT COUNT(*)") for sql in counts)


# Database errors and signals.


def locked(times: float) -> Any:
    """Refuse this many deletions."""
    left = iter(range(int(times)))

    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("DELETE") and next(left, None) is not None:
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    return connection.execute_wrapper(refuse)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("transactional_db", "aged")
def test_waits_for_a_locked_database(caplog: pytest.LogCaptureFixture) -> None:
    before = connection.connection
    with locked(2):
        assert cleanup().startswith("Removed 5 finished tasks;")
    # A new connection is used, because the old one may be the cause.
    assert connection.connection is not before
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "The database does not answer (database is locked); next try in 0.1 s",
        "The database does not answer (database is locked); next try in 0.2 s",
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("transactional_db", "aged")
def test_gives_up_if_the_database_stays_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_app.worker.housekeeping.PATIENCE_SECONDS", 0.2)
    with locked(1000), pytest.raises(CommandError) as caught:
        cleanup()
    assert caught.value.returncode == 75
    assert str(caught.value) == (
        "The database did not answer: database is locked. Run it again later. "
        "Stopped early: removed 0 finished tasks; rescued 0 from lost workers; "
        "removed 0 old worker records."
    )
    assert len(left()) == 9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("aged")
def test_signal_ends_it_after_the_current_batch(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(number)

    def update(_bar: object, removed: int) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(tqdm, "update", update)
    out = StringIO()
    with pytest.raises(SystemExit) as caught:
        call_command("cleanup_tasks", "--json", stdout=out)
    assert caught.value.code == code
    done = json.loads(out.getvalue())
    assert (done["removed"], done["complete"]) == (9 - len(left()), False)
    assert 0 < done["removed"] < 5
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("aged")
def test_second_signal_has_its_default_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def update(_bar: object, removed: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tqdm, "update", update)
    with pytest.raises(KeyboardInterrupt):
        cleanup()


def test_help_and_guide_list_exit_codes_and_summary_fields() -> None:
    help_ = load_command_class("tasks_app", "cleanup_tasks").help
    text = section(GUIDE, "Commands")
    codes = ["0", str(int(Exit.TEMPFAIL)), str(128 + signal.SIGINT), str(128 + signal.SIGTERM)]
    for code in codes:
        assert re.search(rf"\b{code}\b", help_)
        assert re.search(rf"^\|[ \d,]*\b{code}\b", text, re.M)
    assert all(f"`{field.name}`" in text for field in fields(CleanupSummary))


def test_retention_none_keeps_everything(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = settings.TASK_FAILED_RETENTION_SECONDS = None
    saved(Status.COMPLETED, age=timedelta(days=9999))
    assert cleanup("--dry-run") == "Would remove 0 finished tasks.\n"
    assert cleanup().startswith("Removed 0 finished tasks;")
    assert cleanup("--older-than", "1d").startswith("Removed 1 finished tasks;")


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
def test_status_must_be_terminal(status: str) -> None:
    with pytest.raises(CommandError, match=f"argument --status: invalid choice: '{status}'"):
        cleanup("--status", status)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600.0),
        ("0", 0.0),
        ("90s", 90.0),
        ("90m", 5400.0),
        ("12h", 43200.0),
        ("7d", 604800.0),
        ("1.5h", 5400.0),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "7w", "-1d", "-5", "nan", "inf", "infd", "1 day", "1e999"]
)
def test_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        duration(text)
    message = (
        f"{text!r} is not a duration; write seconds, or a number with s, m, h or d, such as 7d"
    )
    assert str(caught.value) == message
    with pytest.raises(CommandError, match="is not a duration; write seconds"):
        cleanup(f"--older-than={text}")
