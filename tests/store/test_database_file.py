"""Detecting that an open SQLite database is no longer the file at its path."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.db.utils import load_backend

from tasks_app.checks import check_sqlite
from tasks_app.store.database_file import DatabaseFile, DatabaseReplaced

pytestmark = [pytest.mark.once, pytest.mark.django_db]

Open = Callable[[Any], tuple[DatabaseFile, Any]]


def create(path: Path) -> Path:
    """Create a database in WAL mode."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x)")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "db.sqlite3")


@pytest.fixture
def open_database() -> Iterator[Open]:
    """Open a database as Django does, and record its file."""
    wrappers = []

    def opened(name: Any, engine: str = "sqlite3") -> tuple[DatabaseFile, Any]:
        settings = {**connection.settings_dict, "NAME": name, "OPTIONS": {}}
        wrapper = load_backend(f"django.db.backends.{engine}").DatabaseWrapper(settings, "other")
        wrappers.append(wrapper)
        file = DatabaseFile(wrapper)
        file.opened(wrapper)
        return file, wrapper

    yield opened
    for wrapper in wrappers:
        wrapper.close()


def from_outside(path: Path, statement: str = "SELECT * FROM t") -> None:
    """Open and close a database in another process.

    The last process to close it deletes the -wal file.
    """
    code = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    code += "d.execute(sys.argv[2]).fetchall(); d.close()"
    subprocess.run([sys.executable, "-c", code, str(path), statement], check=True)


@pytest.mark.slow
def test_ordinary_work_is_not_a_replacement(path: Path, open_database: Open) -> None:
    file, wrapper = open_database(path)
    with wrapper.cursor() as cursor:
        for statement in ("INSERT INTO t VALUES (1)", "PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM"):
            cursor.execute(statement)
            from_outside(path, "INSERT INTO t VALUES (2)")
            file.verify()


@pytest.mark.slow
def test_wal_deleted_on_last_close_is_not_a_replacement(path: Path, open_database: Open) -> None:
    file, wrapper = open_database(path)
    wrapper.close()
    file.closed()
    from_outside(path)
    assert not Path(f"{path}-wal").exists()
    file.verify()
    file.opened(wrapper)
    file.verify()


def delete(path: Path) -> None:
    path.unlink()


def restore(path: Path) -> None:
    os.replace(create(path.with_name("backup")), path)


def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_index(path: Path) -> None:
    """From now on others make an index of their own, and commits are lost on both sides."""
    Path(f"{path}-shm").unlink()


def drop_locks(path: Path) -> None:
    """Drop the file's locks, as a task that copies the file does.

    The next process to close the database then takes itself for the last one.
    """
    path.read_bytes()
    from_outside(path, "INSERT INTO t VALUES (2)")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete, "db.sqlite3 was deleted while it was open"),
        (restore, "db.sqlite3 was replaced by another file while it was open"),
        (delete_log, "db.sqlite3-wal was deleted while it was open"),
        (delete_index, "db.sqlite3-shm was deleted while it was open"),
        (drop_locks, "db.sqlite3-wal was deleted while it was open"),
    ],
)
@pytest.mark.slow
def test_replaced_or_deleted_file_is_detected(
    path: Path, open_database: Open, damage: Callable[[Path], None], message: str
) -> None:
    file, _ = open_database(path)
    damage(path)
    with pytest.raises(DatabaseReplaced, match=message):
        file.verify()


def test_link_to_another_file_is_detected(path: Path, tmp_path: Path, open_database: Open) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(path)
    file, _ = open_database(link)
    file.verify()
    other.symlink_to(create(tmp_path / "db2.sqlite3"))
    os.replace(other, link)
    with pytest.raises(DatabaseReplaced, match="link was replaced"):
        file.verify()


def test_another_file_at_reopening_is_detected(path: Path, open_database: Open) -> None:
    file, wrapper = open_database(path)
    wrapper.close()
    file.closed()
    restore(path)
    with pytest.raises(DatabaseReplaced):
        file.opened(wrapper)


@pytest.mark.parametrize("uri", [False, True])
def test_relative_path_is_resolved_at_first_use(
    path: Path, open_database: Open, monkeypatch: pytest.MonkeyPatch, uri: bool
) -> None:
    monkeypatch.chdir(path.parent)
    file, _ = open_database("file:db.sqlite3?mode=rw" if uri else "db.sqlite3")
    monkeypatch.chdir("/")
    file.verify()
    delete(path)
    with pytest.raises(DatabaseReplaced):
        file.verify()


@pytest.mark.parametrize("name", [":memory:", "file:some?mode=memory&cache=shared"])
def test_in_memory_database_has_no_file(open_database: Open, name: str) -> None:
    file, _ = open_database(name)
    file.verify()


@pytest.mark.slow
def test_journal_mode_check_keeps_locks(path: Path, open_database: Open) -> None:
    file, wrapper = open_database(path)
    site = connections["default"]
    connections["default"] = wrapper
    try:
        assert [message.id for message in check_sqlite(None)] == ["tasks_app.W003"]
    finally:
        connections["default"] = site
    from_outside(path)
    file.verify()
