"""Detection of an SQLite database whose file was deleted or replaced while it is open."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Self

from django.db.backends.base.base import BaseDatabaseWrapper


class DatabaseReplaced(Exception):
    """The file of an open SQLite database was deleted or replaced."""

    def __init__(self, path: str, found: FileId | None, *, is_log: bool) -> None:
        what = "was replaced by another file" if found else "was deleted"
        super().__init__(f"{path} {what} while it was open")
        #: True if the replaced file is the write-ahead log.
        self.is_log = is_log


#: Connections to replaced files. They are never closed: see `leave_open`.
_left_open: list[Any] = []


def leave_open(connection: Any) -> None:
    """Keep a connection to a replaced file open as long as the process lives.

    When the last connection to a file is closed, SQLite deletes the log at its path. By now, that
    is the log of another database, which other processes use.
    """
    _left_open.append(connection)


class FileId(NamedTuple):
    """The identity of a file among all files that exist at the same time."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Self | None:
        """Return the id of the file at a path; None if there is none."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return cls(found.st_dev, found.st_ino)


class DatabaseFile:
    """The files of an SQLite database, as they were when it was opened.

    They are the main file, its write-ahead log (`-wal`) and the index of that (`-shm`).

    If a process loses its POSIX locks, or its database is restored while it is open, SQLite
    continues without an error in a file that no other process has: what it commits is lost. This
    class only looks at paths, never at a descriptor: closing any descriptor of a database file
    drops all locks of this process on it (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Does nothing for other databases, and for databases in memory.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Note the file's id before it is opened, so that no other file can come in between."""
        name = os.fspath(connection.settings_dict["NAME"] or "")
        is_path = connection.vendor == "sqlite" and not name.startswith(("file:", ":"))
        # Absolute, because the working directory may change later.
        self._path = os.path.abspath(name) if is_path else ""
        self._main = FileId.of(self._path) if is_path else None
        #: The ids of the log and its index, by path. They exist in WAL mode only.
        self._beside: dict[str, FileId | None] = {}

    def opened(self, connection: BaseDatabaseWrapper) -> None:
        """Note the log and its index of a connection that was just opened or reopened.

        Raises DatabaseReplaced if the file differs from the one at the first time.
        """
        if connection.vendor != "sqlite":
            return
        with connection.cursor() as cursor:
            # The first read opens the log and its index.
            cursor.execute("PRAGMA schema_version")
            cursor.execute("PRAGMA database_list")
            # SQLite resolves links before it names the log. A database in memory has no file.
            real = next(file for _, schema, file in cursor.fetchall() if schema == "main")
        if not real:
            self._path, self._main = "", None
            return
        self._path = self._path or real
        self._main = self._main or FileId.of(self._path)
        self._beside = {path: FileId.of(path) for path in (f"{real}-wal", f"{real}-shm")}
        self.verify()

    def closed(self) -> None:
        """Forget the log and its index, because closing the last connection may delete them."""
        self._beside = {}

    def verify(self) -> None:
        """Raise DatabaseReplaced if another process that opens the path now gets another file.

        Costs three system calls. A path that cannot be checked, such as on a network that is down,
        proves nothing.
        """
        for path, noted in ((self._path, self._main), *self._beside.items()):
            if noted is None:
                continue
            try:
                found = FileId.of(path)
            except OSError:
                continue
            if found != noted:
                raise DatabaseReplaced(path, found, is_log=path.endswith("-wal"))
