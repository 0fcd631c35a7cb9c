"""Whether an open SQLite database is still the file that its path names."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Self

from django.db.backends.base.base import BaseDatabaseWrapper


class DatabaseReplaced(Exception):
    """The file of an open SQLite database was deleted or replaced."""

    def __init__(self, path: str, found: FileId | None, *, is_log: bool) -> None:
        what = "was replaced by another file" if found else "was deleted"
        super().__init__(f"{path} {what} while it was open")
        #: Only the write-ahead log is another one.
        self.is_log = is_log


#: Connections to files that were replaced, which are never closed: see `leave_open`.
_left_open: list[Any] = []


def leave_open(connection: Any) -> None:
    """Keep a connection to a file that was replaced open for as long as the process lives.

    Whoever closes the last one to a file has SQLite delete the log at its path, and by now that is
    the log of another database, which others use.
    """
    _left_open.append(connection)


class FileId(NamedTuple):
    """What tells a file from every other one that exists at the same time."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Self | None:
        """Return the file that a path leads to; None if there is none."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return cls(found.st_dev, found.st_ino)


class DatabaseFile:
    """The files of an SQLite database, as they were when it was opened.

    They are the main file, its write-ahead log (`-wal`) and the index of that (`-shm`).

    A process whose POSIX locks were dropped, or whose database was restored under it, goes on in a
    file that nobody else has, without an error: what it commits is lost. Only the paths are looked
    at here, never a descriptor: closing any descriptor of a database file drops every lock that
    this process holds on it (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Watches nothing for other databases, and for those in memory.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Note the file before it is opened, so that none can slip in between."""
        name = os.fspath(connection.settings_dict["NAME"] or "")
        is_path = connection.vendor == "sqlite" and not name.startswith(("file:", ":"))
        # Absolute: the working folder may be another one later.
        self._path = os.path.abspath(name) if is_path else ""
        self._main = FileId.of(self._path) if is_path else None
        #: The log and its index, by their paths. Neither is there outside of WAL mode.
        self._beside: dict[str, FileId | None] = {}

    def opened(self, connection: BaseDatabaseWrapper) -> None:
        """Note the log and its index of a connection that was just opened, also if opened anew.

        Raises DatabaseReplaced if the file is another one than at the first time.
        """
        if connection.vendor != "sqlite":
            return
        with connection.cursor() as cursor:
            # The first read opens the log and its index.
            cursor.execute("PRAGMA schema_version")
            cursor.execute("PRAGMA database_list")
            # SQLite follows links before it names the log. A database in memory has no file.
            real = next(file for _, schema, file in cursor.fetchall() if schema == "main")
        if not real:
            self._path, self._main = "", None
            return
        self._path = self._path or real
        self._main = self._main or FileId.of(self._path)
        self._beside = {path: FileId.of(path) for path in (f"{real}-wal", f"{real}-shm")}
        self.verify()

    def closed(self) -> None:
        """Forget the log and its index: whoever closes the last connection may delete them."""
        self._beside = {}

    def verify(self) -> None:
        """Raise DatabaseReplaced if others who open the database now would get another file.

        Costs three system calls. A path that cannot be looked at, as on a network that is away,
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
