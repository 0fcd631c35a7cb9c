"""`manage.py cleanup_tasks`, as cron runs it."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from tasks_app.management.commands.cleanup_tasks import duration
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tests.rows import fresh, lapse, saved, snapshot, worker

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = 7 * 86400
    settings.TASK_FAILED_RETENTION_SECONDS = 30 * 86400


@pytest.fixture
def aged() -> None:
    for status in Status:
        for days in (1, 10, 40):
            saved(status, name=f"{status} {days}", age=timedelta(days=days), worker=None)
    # The leases of what runs are good.
    Task.objects.running().update(lease_expires_at=timezone.now() + timedelta(days=1))


def cleanup(*options: str) -> str:
    out = StringIO()
    call_command("cleanup_tasks", *options, stdout=out)
    return out.getvalue()


def left() -> set[str]:
    return set(Task.objects.filter(finished_at__isnull=False).values_list("name", flat=True))


@pytest.mark.usefixtures("aged")
def test_it_prunes_as_the_site_says() -> None:
    assert cleanup() == (
        "Removed 5 finished tasks; took back 0 from lost workers; "
        "removed 0 records of gone workers.\n"
    )
    assert left() == {"completed 1", "cancelled 1", "failed 1", "failed 10"}
    assert Task.objects.unfinished().count() == 6


@pytest.mark.usefixtures("aged")
def test_older_than_goes_before_what_the_site_says() -> None:
    cleanup("--older-than", "12h")
    assert left() == set()


@pytest.mark.usefixtures("aged")
def test_older_than_keeps_what_the_site_would_not() -> None:
    cleanup("--older-than", "20d")
    assert left() == {
        f"{s} {days}" for s in ("completed", "cancelled", "failed") for days in (1, 10)
    }


@pytest.mark.usefixtures("aged")
def test_only_tasks_of_a_status() -> None:
    cleanup("--older-than", "0", "--status", "failed", "--status", "cancelled")
    assert left() == {"completed 1", "completed 10", "completed 40"}


@pytest.mark.usefixtures("aged")
def test_a_dry_run_changes_nothing() -> None:
    worker(heartbeat_at=timezone.now() - timedelta(days=9))
    lapse(saved(Status.RUNNING), timedelta(days=1))
    before, workers = snapshot(), Worker.objects.count()
    assert cleanup("--dry-run") == "Would remove 5 finished tasks.\n"
    assert json.loads(cleanup("--dry-run", "--json")) == {"would_remove": 5}
    assert (snapshot(), Worker.objects.count()) == (before, workers)


@pytest.mark.usefixtures("aged")
def test_programs_read_json() -> None:
    worker(heartbeat_at=timezone.now() - timedelta(days=9))
    lost = saved(Status.RUNNING)
    lapse(lost, timedelta(days=1))
    assert json.loads(cleanup("--json")) == {"taken_back": 1, "removed": 5, "workers_removed": 1}
    assert fresh(lost).status == Status.FAILED
    assert json.loads(cleanup("--json")) == {"taken_back": 0, "removed": 0, "workers_removed": 0}


def test_what_the_site_keeps_for_ever_stays(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = settings.TASK_FAILED_RETENTION_SECONDS = None
    saved(Status.COMPLETED, age=timedelta(days=9999))
    assert cleanup("--dry-run") == "Would remove 0 finished tasks.\n"
    assert cleanup().startswith("Removed 0 finished tasks;")
    assert cleanup("--older-than", "1d").startswith("Removed 1 finished tasks;")


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
def test_a_status_must_be_one_of_what_has_finished(status: str) -> None:
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
def test_a_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "7w", "-1d", "-5", "nan", "inf", "infd", "1 day", "1e999"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        duration(text)
    fault = f"{text!r} is no duration; write seconds, or a number with s, m, h or d, such as 7d"
    assert str(caught.value) == fault
    with pytest.raises(CommandError, match="is no duration; write seconds"):
        cleanup(f"--older-than={text}")
