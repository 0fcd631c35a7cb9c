from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import PostgreSQL, Redis, postgresql, used


@pytest.fixture
def server(transactional_db: None) -> Iterator[PostgreSQL]:
    """A PostgreSQL server with this test's data, on every run's database.

    A test must request it first: data written before is in another database.
    """
    with postgresql() as started, used(started):
        yield started


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.end()
