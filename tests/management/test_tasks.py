"""The commands that start, show, list, cancel and retry tasks, as shells and cron call them."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.utils import timezone

from tasks_app.management import terminal
from tasks_app.management.commands.start_task import parameter, parameters
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker.coordinator import Coordinator
from tests.harness import Process, begins, eventually
from tests.more_tasks import SaysMuch
from tests.rows import ended, enqueued, facts, fresh, saved, worker
from tests.worker.conftest import Working, start

__all__ = ["start"]

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr."""
    out, err = StringIO(), StringIO()
    try:
        call_command(*arguments, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, out.getvalue(), str(error)
    except SystemExit as error:
        return int(error.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


# Start.


def test_start_by_class_name_with_options(owner: User) -> None:
    options = ["--queue", "mail", "--priority", "3", "--max-attempts", "2", "--unique-key", "k"]
    code, out, _ = run(
        "start_task", "tests.tasks.Add", "--param", "a=40", "--owner", "ada", *options
    )
    task = Task.objects.get()
    assert (code, out) == (0, f"Started Add two numbers: {task.pk}\n")
    assert (task.params, task.owner, task.queue, task.priority) == (
        {"a": 40, "b": 2},
        owner,
        "mail",
        3,
    )
    assert (task.max_attempts, task.unique_key) == (2, "k")


def test_parameters_are_text_or_json() -> None:
    given = ["--params-json", '{"value": 1}', "--param", "value:=[2]"]
    assert run("start_task", "tests.more_tasks.Echo", *given)[0] == 0
    assert Task.objects.get().params == {"value": [2]}


def test_start_prints_json() -> None:
    code, out, _ = run("start_task", "tests.tasks.Noop", "--json")
    assert code == 0
    assert json.loads(out)["task_id"] == str(Task.objects.get().pk)


def test_start_may_be_delayed() -> None:
    run("start_task", "tests.tasks.Noop", "--delay", "2h", "--timeout", "none")
    task = Task.objects.get()
    assert timedelta(hours=1, minutes=59) < task.run_after - timezone.now() <= timedelta(hours=2)
    assert task.timeout_seconds is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Nope"], 2, "There is no task 'Nope'"),
        (["tests.tasks.Add"], 2, "Invalid parameters:\n  a: Field required"),
        (["tests.tasks.Add", "--param", "a=x"], 2, "a: Input should be a valid integer"),
        (["tests.tasks.Noop", "--owner", "eve"], 2, "There is no user 'eve'."),
        (["tests.tasks.Noop", "--max-attempts", "0"], 2, "Invalid option: max_attempts: "),
        (["tests.tasks.Noop", "--unique-key", "held"], 4, "with the unique key 'held' has not"),
    ],
)
def test_wrong_input_is_reported_and_changes_nothing(
    arguments: list[str], code: int, message: str
) -> None:
    enqueued(unique_key="held")
    outcome = run("start_task", *arguments)
    assert (outcome[0], outcome[1]) == (code, "")
    assert message in outcome[2]
    assert Task.objects.count() == 1


@pytest.mark.parametrize("text", ["a", "=1", ":=1", "a:=x"])
def test_parameter_needs_name_and_value(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parameter(text)


@pytest.mark.parametrize("text", ["", "[1]", "{", "1"])
def test_params_json_must_be_an_object(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not (a )?JSON"):
        parameters(text)


# Wait.


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        (["tests.tasks.Add", "--param", "a=40"], 0, "Completed: 42\n"),
        (["tests.tasks.Noop"], 0, "Completed.\n"),
        (["tests.tasks.Fail"], 1, "Failed: ValueError: it broke\n"),
    ],
)
def test_exit_code_tells_the_outcome(
    arguments: list[str], code: int, out: str, start: Callable[..., Working]
) -> None:
    start()
    assert run("start_task", *arguments, "--wait")[:2] == (code, out)
    code_again, output, _ = run("start_task", *arguments, "--wait", "--json")
    assert code_again == code
    assert json.loads(output)["status"] == ("completed" if code == 0 else "failed")


def test_follow_shows_progress_and_log(
    start: Callable[..., Working], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert run("start_task", "tests.tasks.Talk", "--follow")[:2] == (0, "Completed.\n")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "line" in line] == [
        "info: line 0",
        "warning: line 1",
        "info: line 2",
    ]
    assert run("start_task", "tests.tasks.Add", "--param", "a=1", "--follow")[0] == 0
    assert "100% adding" in capsys.readouterr().err


#: Rings the bell, clears the screen, reverses the text direction, and imitates a log line.
EVIL = "x\x07\x1b[2J\u202e\r\n2026-01-01 INFO all is well\u2028\x0b."
SPELLED = r"x\x07\x1b[2J\u202e\r\n2026-01-01 INFO all is well\u2028\x0b."


def test_task_output_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    task = task_service.start_task(SaysMuch, {"text": EVIL, "times": 1})
    Coordinator(1, drain=True).run()
    listed = run("show_task", str(task.task_id), "--with-traceback")[1] + run("list_tasks")[1]
    started = run(
        "start_task", "tests.more_tasks.SaysMuch", f"--param=text={EVIL}", "--param=times=1"
    )
    output = listed + "".join(started[1:]) + "".join(capsys.readouterr())
    assert set(output) - {"\n"} == {char for char in output if char.isprintable()}
    assert not [line for line in output.splitlines() if line.startswith("2026-01-01")]
    assert f"Outcome:   Failed: ValueError: {SPELLED}" in output
    # The list has one line per task.
    assert SPELLED.replace(r"\r\n", " ").replace(r"\u2028\x0b", " ") in output


def test_waiting_reports_a_missing_worker(
    start_worker: Callable[..., Process], processes: list[Process], tmp_path: Path
) -> None:
    worker(queues=["mail"])
    waiting = Process(["manage.py", "start_task", "tests.tasks.Noop", "--wait"], tmp_path / "log")
    processes.append(waiting)
    waiting.says("No worker is running for queue 'default'. Start one: manage.py run_tasks")
    start_worker("--drain")
    assert waiting.wait() == 0


def test_ctrl_c_stops_waiting_but_not_the_task(
    start_worker: Callable[..., Process], processes: list[Process], tmp_path: Path, reins: Path
) -> None:
    start_worker()
    arguments = ["start_task", "tests.tasks.Steps", "--param", f"reins={reins}", "--follow"]
    waiting = Process(["manage.py", *arguments], tmp_path / "log")
    processes.append(waiting)
    waiting.says("ready")
    waiting.send(signal.SIGINT)
    assert waiting.wait() == 130
    task = Task.objects.get()
    assert f"The task continues; to stop it: cancel_task {task.pk}" in waiting.output
    assert "Traceback" not in waiting.output
    assert task.status == Status.RUNNING


def test_cancelled_task_has_its_own_exit_code(
    start_worker: Callable[..., Process], processes: list[Process], tmp_path: Path, reins: Path
) -> None:
    start_worker()
    arguments = ["start_task", "tests.tasks.Steps", "--param", f"reins={reins}", "--wait"]
    waiting = Process(["manage.py", *arguments], tmp_path / "log")
    processes.append(waiting)
    task = eventually(Task.objects.first, what="it starts")
    begins(task.pk)
    code, out, _ = run("cancel_task", str(task.pk), "--wait")
    assert (code, out) == (0, f"{task.pk}: Cancelled.\n")
    assert waiting.wait() == 3
    assert "Cancelled." in waiting.output


# Find.


def test_task_is_found_by_an_id_prefix() -> None:
    task = saved(pk="abcdef00-0000-4000-8000-000000000001")
    for text in (str(task.pk), "abcdef00", "ABCD", "abcdef00-0000-4"):
        assert str(terminal.find_task(text).pk) == str(task.pk)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("abc", 2, "'abc' is too short"),
        ("", 2, "'' is not a task id"),
        ("xyz!", 2, "'xyz!' is not a task id"),
        ("abcdef", 2, "Several tasks begin with 'abcdef'"),
        ("12345678", 1, "There is no task 12345678."),
    ],
)
def test_id_that_is_not_found_is_reported(text: str, code: int, message: str) -> None:
    saved(pk="abcdef00-0000-4000-8000-000000000001")
    saved(pk="abcdef00-0000-4000-8000-000000000002")
    for command in ("show_task", "cancel_task", "retry_task"):
        outcome = run(command, text)
        assert outcome[0] == code
        assert message in outcome[2]


# Show and list.


def test_show_prints_the_task_and_its_history() -> None:
    task = ended(Status.FAILED, params={"password": "hunter2"})
    code, out, _ = run("show_task", str(task.pk))
    assert code == 0
    assert f"Task:      {task.pk}" in out
    assert "Outcome:   Failed: ValueError: it broke" in out
    assert [line.split("  ")[1] for line in out.splitlines() if "  task_" in line] == facts(task)
    assert "hunter2" not in out
    assert "Traceback" not in out
    assert "Traceback: it broke" in run("show_task", str(task.pk), "--with-traceback")[1]


def test_show_prints_json() -> None:
    task = ended(Status.COMPLETED)
    data = json.loads(run("show_task", str(task.pk), "--json", "--events", "1")[1])
    assert (data["task_id"], data["status"]) == (str(task.pk), "completed")
    assert [event["event_type"] for event in data["events"]] == ["task_completed"]


def test_list_shows_the_newest_first(owner: User) -> None:
    old = saved(Status.COMPLETED, age=timedelta(hours=2))
    new = saved(owner=owner, queue="mail")
    code, out, _ = run("list_tasks")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [str(new.pk), str(old.pk)]
    for option, value in (("--status", "pending"), ("--owner", "ada"), ("--queue", "mail")):
        listed = json.loads(run("list_tasks", option, value, "--json")[1])
        assert [task["task_id"] for task in listed] == [str(new.pk)], option
    assert len(run("list_tasks", "--limit", "1")[1].splitlines()) == 1
    assert len(run("list_tasks", "--name", "tests.tasks.Noop")[1].splitlines()) == 2


def test_list_may_be_empty() -> None:
    assert run("list_tasks") == (0, "No tasks.\n", "")
    assert json.loads(run("list_tasks", "--json")[1]) == []
    assert run("list_tasks", "--name", "tests.tasks.Add")[1] == "No tasks.\n"


def test_list_finds_rows_of_a_deleted_class() -> None:
    saved(name="tests.gone.Task")
    assert len(run("list_tasks", "--name", "tests.gone.Task")[1].splitlines()) == 1
    assert run("list_tasks", "--name", "Gone")[0] == 2


def test_numbers_are_validated() -> None:
    task = saved()
    for arguments in (["list_tasks", "--limit=0"], ["show_task", str(task.pk), "--events=-1"]):
        code, _, message = run(*arguments)
        assert code == 2
        assert "must be" in message


# Cancel and retry.


def test_cancel_of_pending_tasks_ends_them() -> None:
    one, two = enqueued(), enqueued()
    code, out, _ = run("cancel_task", str(one.pk), str(two.pk))
    assert (code, out) == (0, f"{one.pk}: Cancelled.\n{two.pk}: Cancelled.\n")
    assert fresh(two).status == Status.CANCELLED


def test_refused_cancel_is_reported() -> None:
    task = ended(Status.COMPLETED)
    code, _, message = run("cancel_task", str(task.pk))
    assert (code, message) == (1, f"Task {task.pk} is completed and cannot be cancelled.")


def test_one_unknown_id_cancels_nothing() -> None:
    task = enqueued()
    assert run("cancel_task", str(task.pk), "00000000")[0] == 1
    assert fresh(task).status == Status.PENDING


def test_retry_of_a_failed_task() -> None:
    old = ended(Status.FAILED)
    code, out, _ = run("retry_task", str(old.pk))
    new = Task.objects.get(retried_from=old)
    assert (code, out) == (0, f"{old.pk} retried as {new.pk}\n")
    code, _, message = run("retry_task", str(old.pk))
    assert (code, message) == (
        1,
        f"Task {old.pk} was already retried. Retry the new task instead. It is task {new.pk}.",
    )


def test_retry_and_cancel_print_json() -> None:
    task = ended(Status.CANCELLED)
    assert json.loads(run("retry_task", str(task.pk), "--json")[1])[0]["status"] == "pending"
    waiting = enqueued()
    assert json.loads(run("cancel_task", str(waiting.pk), "--json")[1])[0]["status"] == "cancelled"
