from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import PostgreSQL, Redis, postgresql, used


@pytest.fixture
def server(transactional_db: None) -> Iterator[PostgreSQL]:
    """A PostgreSQL server that keeps all of the test, whatever the run's database is.

    To be asked for first: what comes before is kept elsewhere.
    """
    with postgresql() as started, used(started):
        yield started


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.end()
