from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from project.airports.csvfile import COLUMNS
from project.airports.models import Airport
from project.airports.tasks import SiteTask
from tasks_app.tasks.progress import ProgressHandle

HEADER = ",".join(COLUMNS)
OSLO = "ENGM,OSL,Oslo Gardermoen Airport,Oslo,Viken,NO,681,60.1939,11.1004,Europe/Oslo,"
BERGEN = "ENBR,BGO,Bergen Airport,Bergen,Vestland,NO,170,60.2934,5.2181,Europe/Oslo,"
ROST = "ENRS,RET,Rost Airport,Rost,Nordland,NO,7,67.5278,12.1033,Europe/Oslo,"


@pytest.fixture(autouse=True)
def media(settings: Any, tmp_path: Path) -> Path:
    settings.MEDIA_ROOT = tmp_path / "media"
    return tmp_path / "media" / "airports"


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create_user("bob")


@pytest.fixture
def norway(db: None) -> list[Airport]:
    """Create three airports in a row. Bergen and Rost are too far apart for one hop of 850 km."""
    return Airport.objects.bulk_create(
        Airport(**dict(zip(COLUMNS, line.split(","), strict=True))) for line in (OSLO, BERGEN, ROST)
    )


@pytest.fixture
def upload(media: Path) -> Any:
    """Store a file as a form would, and return its name."""

    def store(text: str | bytes, name: str = "0" * 32 + ".csv") -> str:
        media.mkdir(parents=True, exist_ok=True)
        data = text if isinstance(text, bytes) else text.encode()
        (media / name).write_bytes(data)
        return name

    return store


@pytest.fixture
def run() -> Any:
    """Run a task directly, and return its result and its progress handle."""

    def run(task: type[SiteTask], **params: Any) -> tuple[dict[str, Any], ProgressHandle]:
        progress = ProgressHandle()
        return task().run(progress, params), progress

    return run
