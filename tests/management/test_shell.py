"""Commands with wrong input and refusals: messages and exit codes."""

from __future__ import annotations

import json
import signal
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from tasks_app.management.commands import list_tasks
from tasks_app.management.terminal import INTERRUPTED, Exit
from tasks_app.models import Task
from tasks_app.states import Status
from tests.docs.pages import GUIDE, table
from tests.management.shell import Shell
from tests.rows import ended, enqueued, fresh, row, saved

pytestmark = pytest.mark.django_db(transaction=True)

NOOP = ["start_task", "tests.tasks.Noop"]
DEEP = "[" * 100_000
#: Python's form of a byte on the command line that is not UTF-8.
STRANGE = "caf\udce9"


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], settings: Settings) -> Shell:
    # Other tests may have defined classes in this process that `check` warns about.
    settings.SILENCED_SYSTEM_CHECKS = ["tasks_app.W010"]
    return Shell(capsys)


# Wrong input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NOOP, "--idempotency-key", "k"], "Invalid option: Value error, an idempotency_key"),
        (["list_tasks", "--before", "0001-01-01T00:00:00+14:00"], "is not a time; write 2026-"),
        ([*NOOP, "--delay", "9000000d"], "--delay: '9000000d' is too long; give 36500d at most"),
        ([*NOOP, "--delay", "1e20"], "is too long"),
        ([*NOOP, "--timeout", "1e20"], "is too long"),
        ([*NOOP, "--delay", "soon"], "'soon' is not a duration"),
        ([*NOOP, "--priority", "high"], "--priority: invalid int value"),
        ([*NOOP, "--params-json", DEEP], "the text is nested too deeply; the limit is 100 levels"),
        ([*NOOP, "--param", f"v:={DEEP}"], "the value of 'v' is nested too deeply"),
        ([*NOOP, "--params-json", "[1]"], "is not a JSON object"),
        ([*NOOP, "--owner", ""], "--owner: must not be empty"),
        ([*NOOP, "--queue", " "], "--queue: must not be empty"),
        ([*NOOP, "--owner", STRANGE], "--owner: character 4 is not UTF-8"),
        ([*NOOP, "--unique-key", STRANGE], "--unique-key: character 4 is not UTF-8"),
        ([*NOOP, "--param", f"v={STRANGE}"], "--param: character 6 is not UTF-8"),
        (["start_task", STRANGE], "name: character 4 is not UTF-8"),
        (["cleanup_tasks", "--older-than", "3000000d"], "is too long"),
        (["list_tasks", "--limit", "99999999999999999999"], "--limit must be from 1 to 100000"),
        (["list_tasks", "--limit", "0"], "--limit must be from 1 to 100000, not 0"),
        (["list_tasks", "--owner", ""], "--owner: must not be empty"),
        (["list_tasks", "--owner", STRANGE], "--owner: character 4 is not UTF-8"),
        (["list_tasks", "--queue", ""], "--queue: must not be empty"),
        (["list_tasks", "--queue", STRANGE], "--queue: character 4 is not UTF-8"),
        (["list_tasks", "--name", ""], "--name: must not be empty"),
        (["list_tasks", "--name", STRANGE], "--name: character 4 is not UTF-8"),
        (["list_tasks", "--status", "paused"], "invalid choice: 'paused'"),
        (["list_tasks", "--before", "noon"], "'noon' is not a time; write 2026-"),
        (["list_tasks", "--before", "2026-13-01T00:00"], "is not a time"),
        (["show_task", "TASK", "--events", "99999999999999999999"], "--events must be from 0 to"),
        (["show_task", "TASK", "--events", "-1"], "--events must be from 0 to 100000, not -1"),
        (["show_task", STRANGE], "task: character 4 is not UTF-8"),
        (["cancel_task", "TASK", "nonsense"], "'nonsense' is not a task id"),
        (["cancel_task", "TASK", STRANGE], "character 4 is not UTF-8"),
        (["retry_task", "TASK", "nonsense"], "'nonsense' is not a task id"),
        (["tasks_health", "--queue", ""], "--queue: must not be empty"),
        (["tasks_health", "--max-wait", "1e20"], "is too long"),
        (["tasks_health", "--min-workers", "-1"], "--min-workers must be 0 or more, not -1"),
        (["run_tasks", "--drain", "--max-workers", "0"], "--max-workers must be 1 or more, not 0"),
        (["run_tasks", "--drain", "--queues", STRANGE], "--queues: character 4 is not UTF-8"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_wrong_input_exits_with_2_and_changes_nothing(
    arguments: list[str], message: str, shell: Shell
) -> None:
    task = enqueued()
    outcome = shell(*[str(task.pk) if word == "TASK" else word for word in arguments])
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert Task.objects.get().status == Status.PENDING


@pytest.mark.parametrize(
    "wrong",
    [
        ["--param", 'key:={"secret": hunter2}'],
        ["--param", "hunter2"],
        ["--param", "key:=hunter2"],
        ["--params-json", '{"key": "hunter2"'],
        ["--params-json", '["hunter2"]'],
        ["--param", "key=hunter2"],
        ["--params-json", '{"key": "hunter2\\ud800"}'],
    ],
    ids=lambda words: words[1],
)
def test_values_of_parameters_are_not_printed(wrong: list[str], shell: Shell) -> None:
    outcome = shell(*NOOP, *wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert "hunter2" not in outcome.err


def test_hundred_years_are_allowed(shell: Shell) -> None:
    assert shell(*NOOP, "--delay", "36500d").code == 0
    assert shell("cleanup_tasks", "--dry-run", "--older-than", "36500d").code == 0


def test_guide_lists_every_exit_code() -> None:
    documented = {int(code) for code, _ in table(GUIDE, "Exit codes")}
    assert documented == {*Exit, INTERRUPTED, 128 + signal.SIGPIPE}


# Keys.


def test_replayed_start_is_reported(owner: User, shell: Shell) -> None:
    key = ["--owner", "ada", "--idempotency-key", "k"]
    assert shell(*NOOP, *key).out.startswith("Started Noop: ")
    again = shell(*NOOP, *key)
    assert (again.code, again.out) == (
        0,
        f"Already started with this key: Noop: {Task.objects.get().pk}\n",
    )
    other = shell("start_task", "tests.tasks.Add", "--param", "a=1", *key)
    assert (other.code, other.out) == (2, "")
    assert "Use a new key for each new start." in other.err


# Several tasks.


def test_task_that_cannot_be_cancelled_does_not_stop_the_others(shell: Shell) -> None:
    done = ended(Status.COMPLETED)
    one, two = enqueued(), enqueued()
    ids = [str(one.pk), str(done.pk), str(two.pk), str(one.pk)]
    outcome = shell("cancel_task", *ids)
    assert (outcome.code, outcome.out) == (1, f"{one.pk}: Cancelled.\n{two.pk}: Cancelled.\n")
    assert outcome.err == f"CommandError: Task {done.pk} is completed and cannot be cancelled.\n"
    assert fresh(two).status == Status.CANCELLED
    three = enqueued()
    outcome = shell("cancel_task", "--json", str(done.pk), str(three.pk), "--wait")
    assert outcome.code == 1
    assert [task["task_id"] for task in json.loads(outcome.out)] == [str(three.pk)]


def test_task_that_cannot_be_retried_does_not_stop_the_others(shell: Shell) -> None:
    done, one, two = (
        ended(status) for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    )
    outcome = shell("retry_task", str(one.pk), str(done.pk), str(two.pk), "--json")
    assert outcome.code == 1
    assert [task["task_id"] for task in json.loads(outcome.out)] == [
        str(Task.objects.get(retried_from=old).pk) for old in (one, two)
    ]
    assert outcome.err == f"CommandError: Task {done.pk} is completed and cannot be retried.\n"


def test_retry_with_a_held_unique_key_exits_with_4(shell: Shell) -> None:
    old = ended(Status.FAILED, unique_key="k")
    holder = enqueued(unique_key="k")
    outcome = shell("retry_task", str(old.pk))
    assert (outcome.code, outcome.out) == (4, "")
    assert f"It is task {holder.pk}." in outcome.err
    # With another error as well the code is 1, because waiting for the key would not be enough.
    assert shell("retry_task", str(old.pk), str(holder.pk)).code == 1


# Lists.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_tasks, "WINDOW", 3)


def several(*statuses: Status, **fields: Any) -> list[Task]:
    """Create rows a minute apart, the oldest first."""
    return Task.objects.bulk_create(
        row(status, age=timedelta(minutes=len(statuses) - place), **fields)
        for place, status in enumerate(statuses)
    )


@pytest.mark.usefixtures("small")
def test_list_reads_a_limited_window_and_reports_its_end(shell: Shell) -> None:
    tasks = several(Status.FAILED, Status.FAILED, *[Status.COMPLETED] * 3, queue="mail")
    for option, value in (("--status", "failed"), ("--name", "tests.tasks.Add")):
        outcome = shell("list_tasks", option, value)
        assert (outcome.code, outcome.out) == (0, "No tasks.\n")
        further = outcome.err.split()[-2:]
        assert outcome.err == f"Searched 3 tasks. For older ones: {' '.join(further)}\n"
        assert further[0] == "--before"
    outcome = shell("list_tasks", "--status", "failed", "--json", *further)
    assert [task["task_id"] for task in json.loads(outcome.out)] == [
        str(task.pk) for task in reversed(tasks[:2])
    ]
    assert outcome.err == ""
    # A full list needs no hint.
    assert shell("list_tasks", "--queue", "mail", "--limit", "3").err == ""
    assert len(shell("list_tasks", "--queue", "mail", "--limit", "4").out.splitlines()) == 3


@pytest.mark.usefixtures("small")
def test_tasks_found_by_an_index_are_listed_at_any_age(owner: User, shell: Shell) -> None:
    several(Status.PENDING, Status.RUNNING)
    Task.objects.update(created_at=timezone.now() - timedelta(days=1))
    saved(Status.COMPLETED, owner=owner, age=timedelta(days=2))
    several(*[Status.COMPLETED] * 4)
    for options in (
        ["--status", "pending"],
        ["--status", "running"],
        ["--owner", "ada"],
        ["--owner", "ada", "--status", "completed"],
    ):
        outcome = shell("list_tasks", *options)
        assert (len(outcome.out.splitlines()), outcome.err) == (1, ""), options
        assert outcome.out != "No tasks.\n"
    assert len(shell("list_tasks", "--status", "pending", "--status", "running").out.split()) > 9
    # With this many pending tasks, the newest are enough.
    Task.objects.update(created_at=timezone.now() - timedelta(days=1))
    several(*[Status.PENDING] * 4)
    outcome = shell("list_tasks", "--status", "pending")
    assert len(outcome.out.splitlines()) == 3
    assert "--before" in outcome.err


def test_list_reads_no_long_columns(shell: Shell) -> None:
    saved(Status.COMPLETED, result="long", params={"a": "long"}, error_traceback="long")
    with RecordedQueries() as reading:
        shell("list_tasks", "--status", "completed")
    [read] = [sql for sql in reading.sql if "progress_text" in sql]
    assert not [name for name in ("params", "result", "error_traceback") if f'"{name}"' in read]


class RecordedQueries:
    """Records the SQL that is executed."""

    def __init__(self) -> None:
        self.sql: list[str] = []

    def __enter__(self) -> RecordedQueries:
        self._wrapper = connection.execute_wrapper(self._note)
        self._wrapper.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._wrapper.__exit__(None, None, None)

    def _note(self, execute: Any, sql: str, *rest: Any) -> Any:
        self.sql.append(sql)
        return execute(sql, *rest)
