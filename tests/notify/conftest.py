from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PostgreSQL, Redis, postgresql, used


@pytest.fixture(scope="package")
def running_postgresql() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def server(transactional_db: None, running_postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """A PostgreSQL server with this test's data, on every run's database."""
    with used(running_postgresql):
        yield running_postgresql


@pytest.fixture
def redis_server(tmp_path: Path, settings: Any) -> Iterator[Redis]:
    """A Redis server that the site's settings use."""
    server = Redis(tmp_path)
    settings.EVENTSTREAM_REDIS = server.setting
    yield server
    server.end()
