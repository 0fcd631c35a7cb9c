"""Everything that the pages name exists, and the guide documents everything that exists."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from django.urls import URLPattern
from django.utils.module_loading import import_string

from tasks_app import conf, exceptions, models, permissions, schemas, urls
from tasks_app.service import StartOptions, TaskService
from tasks_app.states import FACTS, LEGAL, TERMINAL, EventType, Status
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.progress import LOG_LEVELS, ProgressHandle
from tasks_app.templatetags.tasks import FORMS, task_list, task_progress
from tasks_app.web.background import background_action
from tests.docs.pages import (
    ARCHITECTURE,
    GLOSSARY,
    GUIDE,
    PAGES,
    README,
    ROOT,
    anchors,
    code,
    links,
    prose,
    section,
    snippets,
    table,
)
from tests.test_layers import LAYERS

pytestmark = pytest.mark.once

APP = ROOT / "tasks_app"
SOURCE = "\n".join(path.read_text() for path in sorted(APP.rglob("*.py")))


def first_column(page: Path, title: str) -> list[str]:
    """Return the code at the beginning of each row of a table."""
    return [code(row[0])[0] for row in table(page, title)]


def tables(title: str) -> dict[str, list[list[str]]]:
    """Return the tables under a heading of the guide, by the code in the line above each."""
    tables_by_name: dict[str, list[list[str]]] = {}
    name = ""
    for line in section(GUIDE, title).splitlines():
        if line.startswith("|"):
            tables_by_name.setdefault(name, []).append(
                [cell.strip() for cell in line.split("|")[1:-1]]
            )
        elif code(line):
            name = code(line)[0]
    return {name: rows[2:] for name, rows in tables_by_name.items()}


# Links, files, names.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page: Path) -> None:
    """Check files and dotted paths of the project, model fields, settings and make targets."""
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    known = {conf.PREFIX + field.upper() for field in conf.TaskSettings.model_fields}
    for name in [*code(prose(page)), *snippet_lines(page)]:
        if re.fullmatch(r"(tasks_app|project|tests)/[\w/.-]+", name):
            assert (ROOT / name).exists(), name
        if re.fullmatch(r"tasks_app(\.\w+)+", name) and not is_permission_or_url(name):
            assert is_importable(name), name
        if found := re.fullmatch(r"(Task|Worker)\.(\w+)", name):
            assert getattr(models, found[1])._meta.get_field(found[2])
        for setting in re.findall(r"\bTASK_[A-Z_]+\b", name):
            assert setting in known, setting
        if found := re.match(r"(?:TEST_DATABASE=\w+ )?make ([a-z-]+)", name):
            assert found[1] in targets, name
        if name.startswith("--"):
            assert f'"{name}"' in SOURCE or name.startswith(("--task-", "--fail-level")), name


def snippet_lines(page: Path) -> list[str]:
    return [line for snippet in snippets(page, "sh") for line in snippet.text.splitlines()]


def is_permission_or_url(name: str) -> bool:
    """Return whether the name is a permission, a check or a logger, not a module."""
    actions = ("view", "add", "change", "delete", "start", "cancel", "retry")
    codenames = {f"{action}_task" for action in actions} | {"view_worker"}
    return (
        name.removeprefix("tasks_app.") in codenames
        or re.fullmatch(r"tasks_app\.[EW]\d+", name) is not None
        or f'SafeLogger("{name}")' in SOURCE
    )


def is_importable(name: str) -> bool:
    if (APP.parent / Path(*name.split("."))).is_dir():
        return True
    if (APP.parent / Path(*name.split("."))).with_suffix(".py").exists():
        return True
    return bool(import_string(name))


def test_readme_links_every_page() -> None:
    linked = {link.partition("#")[0] for link in links(README)}
    for page in PAGES:
        if page != README:
            assert page.relative_to(ROOT).as_posix() in linked


# Settings, commands, checks, loggers.


def test_documented_settings_match_conf() -> None:
    defaults = conf.TaskSettings()
    documented = {
        code(row[0])[0]: ast.literal_eval(code(row[1])[0]) for row in table(GUIDE, "Settings")
    }
    assert documented == {
        conf.PREFIX + field.upper(): getattr(defaults, field)
        for field in conf.TaskSettings.model_fields
    }


COMMANDS = sorted(path.stem for path in (APP / "management" / "commands").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_options_are_documented(name: str) -> None:
    def options(command: BaseCommand) -> set[str]:
        parser = command.create_parser("manage.py", name)
        return {option for action in parser._actions for option in action.option_strings}

    own = options(load_command_class("tasks_app", name)) - options(BaseCommand())
    documented = tables("Commands")[f"manage.py {name}"]
    assert {option for row in documented for option in code(row[0])} == own


def test_every_command_is_documented() -> None:
    assert set(tables("Commands")) >= {f"manage.py {name}" for name in COMMANDS}


def test_commands_in_the_guide_parse() -> None:
    commands = [line for line in snippet_lines(GUIDE) if "manage.py" in line]
    assert len(commands) > 3
    for line in commands:
        _, _, name, *arguments = shlex.split(line)
        parser = load_command_class("tasks_app", name).create_parser("manage.py", name)
        parser.parse_args(arguments)


def test_checks_are_documented() -> None:
    ids = set(re.findall(r'id="(tasks_app\.[EW]\d+)"', (APP / "checks.py").read_text()))
    assert set(first_column(GUIDE, "System checks")) == ids


def test_loggers_are_documented() -> None:
    loggers = set(re.findall(r'SafeLogger\("(tasks_app[\w.]*)"\)', SOURCE))
    assert set(first_column(GUIDE, "Logging")) == loggers


# For task authors and callers.


def test_class_options_are_documented() -> None:
    options = {name for name in inspect.get_annotations(BaseTask) if not name.startswith("_")}
    documented = {code(row[0])[0]: code(row[1]) for row in table(GUIDE, "Class options")}
    assert set(documented) == options
    for name, default in documented.items():
        if default:
            assert ast.literal_eval(default[0]) == getattr(BaseTask, name), name


def test_progress_calls_are_documented() -> None:
    ours = {
        "stop",
        "take",
        "finish",
        "lines",
        "dropped_lines",
        "notify",
        "reason",
    }  # for the worker and tests
    public = {name for name in dir(ProgressHandle) if not name.startswith("_")} - ours
    documented = {
        re.match(r"progress\.(\w+)", call).group(1): call  # type: ignore[union-attr]
        for call in first_column(GUIDE, "Progress")
    }
    assert set(documented) == public
    for name, call in documented.items():
        found = getattr(ProgressHandle, name)
        if inspect.isfunction(found):
            written = re.findall(r"(\w+)(?:=|, |\))", call.partition("(")[2])
            expected = list(inspect.signature(found).parameters)[1:]
            assert [word for word in written if word in expected] == expected, call
    assert all(f"`{level}`" in section(GUIDE, "The log") for level in LOG_LEVELS)


def test_start_options_are_documented() -> None:
    documented = set(first_column(GUIDE, "Options of a start"))
    assert documented == set(StartOptions.model_fields)
    assert documented < set(inspect.signature(TaskService.start_task).parameters)


def test_service_calls_are_documented() -> None:
    for name in (name for name in vars(TaskService) if not name.startswith("_")):
        assert f"task_service.{name}(" in GUIDE.read_text(), name


def test_exceptions_are_documented() -> None:
    documented = set(first_column(GUIDE, "Errors"))
    documented |= set(first_column(GUIDE, "Cancellation and timeouts"))
    errors = {
        name
        for name, found in vars(exceptions).items()
        if isinstance(found, type) and found.__module__ == exceptions.__name__
    }
    assert documented == errors - {"StaffError", "TaskError"}


@pytest.mark.parametrize(
    "schema",
    [
        schemas.TaskStartResponse,
        schemas.TaskInfo,
        schemas.TaskProgressUpdate,
        schemas.TaskError,
        schemas.TaskEvent,
    ],
)
def test_schema_fields_are_documented(schema: Any) -> None:
    rows = tables("Data types")[schema.__name__]
    assert [code(row[0])[0] for row in rows] == list(schema.model_fields)


def test_permissions_are_documented() -> None:
    text = section(GUIDE, "Permissions")
    for name in (name for name in vars(permissions) if name.startswith("may_")):
        assert f"`{name}`" in text


# HTTP and pages.


def test_endpoints_are_documented() -> None:
    rows = {code(row[0])[0]: code(row[1]) for row in table(GUIDE, "Endpoints")}
    patterns = {str(one.name): one for one in urls.urlpatterns if isinstance(one, URLPattern)}
    assert set(rows) == set(patterns)
    for name, pattern in patterns.items():
        for route in rows[name]:
            assert route.partition("?")[0] == str(pattern.pattern)


def test_messages_are_documented() -> None:
    rows = {code(row[0])[0]: row[1] for row in table(GUIDE, "Messages")}
    assert set(rows) == set(EventType)
    assert {kind for kind, stored in rows.items() if stored == "yes"} == FACTS


def test_tag_options_are_documented() -> None:
    options = set(inspect.signature(task_progress).parameters) - {"context", "task"}
    assert set(first_column(GUIDE, "The template tag")) == options
    assert set(code(section(GUIDE, "The template tag"))) >= FORMS.keys()
    options = set(inspect.signature(task_list).parameters) - {"context"}
    assert set(first_column(GUIDE, "Lists of tasks")) == options


def test_action_options_are_documented() -> None:
    signature = inspect.signature(background_action).parameters
    documented = table(GUIDE, "Actions of the admin, and forms")
    rows = {name: row for row in documented for name in code(row[0])}
    assert set(rows) == signature.keys() - {"task", "options"}
    for name in ("ids", "most"):
        assert ast.literal_eval(code(rows[name][1])[0]) == signature[name].default


def test_element_is_documented() -> None:
    static = APP / "static" / "tasks_app"
    script = (static / "task-progress.js").read_text()
    style = (static / "task-progress.css").read_text()
    templates = (APP / "templates" / "tasks_app").glob("task_*.html")
    template = "\n".join(path.read_text() for path in templates)
    text = section(GUIDE, "The element")
    documented = code(text)

    events = set(re.findall(r'"(task-progress:\w+)"', script))
    assert {name for name in documented if name.startswith("task-progress:")} == events
    properties = set(re.findall(r"var\((--task-[\w-]+)", style))
    assert {name for name in documented if name.startswith("--")} == properties
    parts = set(re.findall(r'data-part="(\w+)"', template))
    [line] = [line for line in text.splitlines() if "`data-part`" in line]
    assert set(code(line)) - {"data-part"} == parts


def test_statuses_are_documented() -> None:
    assert set(Status.values) <= set(code(section(GUIDE, "Data types")))
    [row] = [row for row in tables("Commands")["manage.py cleanup_tasks"] if "--status" in row[0]]
    assert set(code(row[1])) == TERMINAL


# Architecture.


def test_state_diagram_matches_the_table() -> None:
    [diagram] = [one for one in snippets(ARCHITECTURE, "mermaid") if "stateDiagram" in one.text]
    arrows = re.findall(r"(\[\*\]|\w+) --> (\[\*\]|\w+)(?:: (\w+))?", diagram.text)
    legal = {
        (str(source.value) if source else "[*]", move.target.value, verb.value)
        for verb, move in LEGAL.items()
        for source in move.sources or [None]
    }
    assert {arrow for arrow in arrows if arrow[2]} == legal
    assert {source for source, target, _ in arrows if target == "[*]"} == TERMINAL
    assert len(arrows) == len(set(arrows))


def test_verbs_match_the_table() -> None:
    rows = {
        code(verb)[0]: (code(event), fenced)
        for verb, event, fenced, _ in table(ARCHITECTURE, "The states of a task")
    }
    assert rows == {
        verb.value: ([move.event.value] if move.event else [], "yes" if move.fenced else "no")
        for verb, move in LEGAL.items()
    }


def test_layers_match_the_layer_test() -> None:
    rows = [set(code(row[0])) for row in table(ARCHITECTURE, "Layers")]
    assert rows == LAYERS[::-1]


def test_indexes_are_documented() -> None:
    existing = {
        thing.name
        for model in (models.Task, models.TaskEvent, models.Worker)
        for thing in [*model._meta.indexes, *model._meta.constraints]
        if not thing.deconstruct()[0].endswith("CheckConstraint")
    }
    assert set(first_column(ARCHITECTURE, "Indexes")) == existing


def test_glossary_names_things_where_they_are_defined() -> None:
    for name in code(prose(GLOSSARY)):
        module, _, thing = name.rpartition(".")
        if re.fullmatch(r"tasks_app(\.\w+)+", name) and is_importable(module):
            made = getattr(import_module(module), thing, None)
            home = getattr(made, "__module__", module)
            # A package of models is imported from, not its modules.
            assert home == module or home.startswith("tasks_app.models."), name


def test_glossary_is_sorted() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\*", GLOSSARY.read_text(), re.M)
    assert words == sorted(words)
    assert len(words) > 25
