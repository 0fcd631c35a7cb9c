"""Imports go down only, and other rules about the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks_app.states import EventType, Status

pytestmark = pytest.mark.once

SITE = Path(__file__).resolve().parent.parent
APP = SITE / "tasks_app"
FILES = sorted(path for path in APP.rglob("*.py") if "migrations" not in path.parts)
#: Rooms that have no layer of their own: each of their modules has one.
ROOMS = {"store", "tasks"}

#: From the lowest to the highest. A module may import from the lines below its own. In the last
#: line, and within one package, modules may import each other. A package that is named stands for
#: those of its modules that are not.
LAYERS = [
    {"states"},
    {"exceptions"},
    {"conf", "logs"},
    {"schemas", "tasks.backoff", "tasks.imports", "tasks.secret_types"},
    {"tasks.declaration", "tasks.progress", "tasks.stored_json"},
    {"tasks.base"},
    {"tasks.forms", "tasks.registry"},
    {"models.expressions", "models.primary"},
    {"models.querysets"},
    {"models"},
    {"notify", "store.claims", "store.clock", "store.database_file"},
    {"store.ledger"},
    {"store.lifecycle"},
    {"permissions", "store.bulk", "store.health", "store.retention", "store.statistics"},
    {"live", "worker"},
    {"service"},
    {"admin", "api", "apps", "checks", "management", "templatetags", "urls", "web"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
DOORS = LAYERS[-1]


def name_of(path: Path) -> str:
    return path.relative_to(APP).as_posix()


def layer_of(module: str) -> str:
    """The line's name for a module such as `store.clock`: its own, or its package's."""
    within = ".".join(module.split(".")[:2])
    return within if within in HEIGHT else within.split(".")[0]


def part_of(path: Path) -> str:
    name = name_of(path).removesuffix(".py").removesuffix("/__init__")
    return layer_of(name.replace("/", "."))


def parsed(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    return tree


def ancestors(node: ast.AST) -> Iterator[ast.AST]:
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        yield node


def imports(path: Path) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Yield each import of a file with the parts of the app that it imports."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively; name the package"
            modules = [str(node.module)]
            if (SITE / str(node.module).replace(".", "/")).is_dir():
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield (
            node,
            [
                layer_of(name.removeprefix("tasks_app."))
                for name in modules
                if name.startswith("tasks_app.")
            ],
        )


def for_types_only(node: ast.AST) -> bool:
    return any(
        isinstance(above, ast.If)
        and isinstance(above.test, ast.Name)
        and above.test.id == "TYPE_CHECKING"
        for above in ancestors(node)
    )


def violations(path: Path) -> list[str]:
    own = part_of(path)
    return [
        f"{name_of(path)}:{node.lineno} imports {part}"
        for node, parts in imports(path)
        if not for_types_only(node)
        for part in parts
        if part != own and not (own in DOORS and part in DOORS) and HEIGHT[part] >= HEIGHT[own]
    ]


def test_every_file_has_a_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__", *ROOMS}
    assert parts <= set(HEIGHT)
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    assert violations(path) == []


def test_upward_import_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_layers.APP", tmp_path)
    file = tmp_path / "models.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "from tasks_app import service, states\n"
        "import tasks_app.live.relay\n"
        "if TYPE_CHECKING:\n"
        "    from tasks_app.permissions import User\n"
    )
    assert violations(file) == ["models.py:2 imports service", "models.py:3 imports live"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_do_not_import_the_app(path: Path) -> None:
    hidden = [
        f"{name_of(path)}:{node.lineno}"
        for node, parts in imports(path)
        if parts
        for above in ancestors(node)
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef)
        and (name_of(path), above.name) != ("apps.py", "ready")
    ]
    assert hidden == []


# Smells.


@pytest.mark.parametrize(
    "path", [path for path in FILES if name_of(path) != "store/lifecycle.py"], ids=name_of
)
def test_only_lifecycle_writes_status(path: Path) -> None:
    written = [
        node.lineno
        for node in ast.walk(parsed(path))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and node.attr == "status"
            and not (name_of(path) == "exceptions.py" and ast.unparse(node) == "self.status")
        )
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("update", "bulk_update", "update_or_create")
            and any(keyword.arg == "status" for keyword in node.keywords)
        )
    ]
    assert written == []


VOCABULARY = {*Status.values, *EventType.values}


def vocabulary_of(path: Path) -> set[str]:
    """Return the strings of a file that are names of statuses or events, except docstrings."""
    return {
        node.value
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and node.value in VOCABULARY
        and not isinstance(getattr(node, "parent", None), ast.Expr)
    }


#: Text for people, or names for a page's script, that happen to be a status's.
SAID: dict[str, set[str]] = {
    "api/problems.py": {"task_status"},
    "store/lifecycle.py": {"cancelled"},
    "worker/outcomes.py": {"completed"},
    "web/display.py": {"running"},
    "web/words.py": {"running", "completed", "failed", "cancelled"},
}


@pytest.mark.parametrize(
    "path", [path for path in FILES if name_of(path) != "states.py"], ids=name_of
)
def test_statuses_and_events_are_spelled_only_in_states(path: Path) -> None:
    assert vocabulary_of(path) <= SAID.get(name_of(path), set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_sleeps(path: Path) -> None:
    """A thread that waits must notice a shutdown."""
    sleeping = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "sleep"
    ]
    assert sleeping == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_exception_is_silently_ignored(path: Path) -> None:
    silent = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and all(isinstance(statement, ast.Pass) for statement in node.body)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert silent == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_has_at_most_400_lines(path: Path) -> None:
    """A longer file has more than one idea."""
    assert len(path.read_text().splitlines()) <= 400


def test_no_file_has_a_catch_all_name() -> None:
    assert not [name_of(path) for path in FILES if path.stem in ("utils", "helpers", "misc")]
