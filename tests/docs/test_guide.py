"""The guide's snippets run, and its sample messages match what is sent."""

from __future__ import annotations

import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator
from logging.config import DictConfigurator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import Context, Template
from django.test import RequestFactory

from tasks_app import schemas
from tasks_app.live import wire
from tasks_app.models import Task, TaskEvent
from tasks_app.service import task_service
from tasks_app.states import FACTS, EventType
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, Failure, claim_of
from tasks_app.tasks.progress import LogLine, ProgressHandle
from tasks_app.worker.interruption import SHIELDED
from tests.docs.pages import GUIDE, PAGES, Snippet, section, snippets
from tests.rows import worker

RUNNABLE = [snippet for snippet in snippets(GUIDE, "python") if "run" in snippet.options]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the guide's files, and make them importable."""
    for snippet in snippets(GUIDE):
        if snippet.file:
            path = tmp_path / snippet.file
            path.parent.mkdir(exist_ok=True)
            with path.open("a" if "append" in snippet.options else "w") as file:
                file.write(snippet.text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "snippet", [one for page in PAGES for one in snippets(page, "python")], ids=str
)
def test_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, str(snippet), "exec")


@pytest.mark.django_db
def test_snippets_run(shop: Path) -> None:
    request = SimpleNamespace(user=User.objects.create(username="viewer"))
    names: dict[str, Any] = {"request": request}
    for snippet in RUNNABLE:
        exec(compile(snippet.text, str(snippet), "exec"), names)
    assert names["running"]
    assert_logs_with_and_without_a_task(names["LOGGING"])
    assert names["info"].status == "cancelled"


def assert_logs_with_and_without_a_task(settings: dict[str, Any]) -> None:
    [formatter] = settings["formatters"].values()
    made = DictConfigurator({}).configure_formatter(dict(formatter))
    record = logging.makeLogRecord({"name": "tasks_app.worker", "msg": "hello"})
    assert made.format(record).endswith("tasks_app.worker [-] hello")
    record.task_id = "4b98"
    assert made.format(record).endswith("tasks_app.worker [4b98] hello")


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_guide_tests_pass(shop: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec("".join(block.text for block in RUNNABLE if "def test_" in block.text), names)
    tests = [one for name, one in names.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        wanted = inspect.signature(test).parameters
        test(**{"tmp_path": tmp_path} if "tmp_path" in wanted else {})


@pytest.mark.django_db
def test_guide_tasks_work(shop: Path, tmp_path: Path) -> None:
    from shop import tasks  # type: ignore[import-not-found]

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("abc")
    (folder / "b").write_text("de")
    for task, params, result in (
        (tasks.CountDays, {"first": "2026-01-01", "last": "2026-01-31"}, 31),
        (tasks.Archive, {"folder": str(folder)}, 5),
        (tasks.Prepare, {}, None),
        (tasks.Shuffle, {"rows": 3}, 6),
        (tasks.Drain, {"batches": 2}, 2),
        (tasks.MakeUsers, {"names": ["ada", "ben"]}, 2),
    ):
        progress = ProgressHandle()
        assert task().run(progress, task.validate_params(params)) == result
        silent = task in (tasks.CountDays, tasks.Drain)
        assert progress.latest.value == (None if silent else 1.0)


def test_template_tag_accepts_the_guides_arguments(db: None) -> None:
    started = task_service.start_task("tests.tasks.Noop")
    [sample] = [block for block in snippets(GUIDE, "html") if "task_progress" in block.text]
    request = RequestFactory().get("/")
    task = Task.objects.get(pk=started.task_id)
    page = Template(sample.text).render(
        Context({"task": task, "request": request, "task_url": "/there/"})
    )
    assert page.count("<task-progress") == 3
    assert '<a href="/there/">Progress</a>' in page


def test_list_tag_accepts_the_guides_arguments(db: None) -> None:
    owner = User.objects.create_user("ada")
    for _ in range(7):
        task_service.start_task("tests.tasks.Noop", owner=owner)
    [sample] = [block for block in snippets(GUIDE, "html") if "task_list" in block.text]
    request = RequestFactory().get("/")
    request.user = owner
    page = Template("{% load tasks %}" + sample.text).render(
        Context({"request": request, "page": Task.objects.all()[:2]})
    )
    assert page.count("<task-progress") == 7 + 5 + 2


def samples() -> list[schemas.TaskEvent]:
    text = section(GUIDE, "Messages")
    return [
        schemas.TaskEvent.model_validate_json(line.removeprefix("data: "))
        for line in text.splitlines()
        if line.startswith(("data: {", "{"))
    ]


def test_every_message_has_a_sample() -> None:
    assert {sample.event_type for sample in samples()} == set(EventType)
    for sample in samples():
        if sample.event_type is EventType.STATUS:
            schemas.TaskInfo.model_validate_json(json.dumps(sample.data))
            assert list(sample.data) == list(schemas.TaskInfo.model_fields)
    [stream] = [one for one in snippets(GUIDE, "text") if "task_status" in one.text]
    assert stream.text.encode().startswith(wire.BEGINNING)
    assert stream.text.encode().endswith(wire.STREAM_END)


def test_modules_that_delay_an_interruption_are_documented() -> None:
    text = section(GUIDE, "Code that makes no progress call")
    imports = {"importlib", "_frozen_importlib"}
    for name in SHIELDED - imports - {"tasks_app"}:
        assert f"`{name}`" in text


def test_samples_have_the_fields_that_are_sent(db: None) -> None:
    """The table of messages has them too."""
    by = worker()

    def claimed() -> Claim:
        task_service.start_task("tests.tasks.Noop", max_attempts=2)
        return claim_of(lifecycle.claim(by, 1)[0])

    failure = Failure("ValueError", "it broke")
    lifecycle.log({claimed(): [LogLine("info", "hello")]})
    lifecycle.retry({claimed(): failure})
    lifecycle.fail({claimed(): failure})
    lifecycle.complete({claimed(): 1})
    asked = claimed()
    lifecycle.request_cancel(asked.task_id, by="ada")
    lifecycle.cancel({asked: False})
    lifecycle.release([claimed()])
    lifecycle.request_cancel(task_service.start_task("tests.tasks.Noop").task_id, by="ada")

    sent: dict[str, set[frozenset[str]]] = {}
    for event in TaskEvent.objects.all():
        sent.setdefault(event.event_type, set()).add(frozenset(event.data))
    assert set(sent) == FACTS
    for sample in samples():
        if sample.event_type in FACTS:
            assert frozenset(sample.data) in sent[sample.event_type], sample

    rows = section(GUIDE, "Messages").splitlines()
    for kind, shapes in sent.items():
        [row] = [row for row in rows if row.startswith(f"| `{kind}`")]
        documented = set(re.findall(r"`(\w+)`", row.rsplit("|", 2)[1]))
        for shape in shapes:
            assert shape <= documented, kind
