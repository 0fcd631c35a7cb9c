from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User

from project.airports.models import Airport


@pytest.fixture
def airports(db: None) -> list[Airport]:
    return Airport.objects.bulk_create(
        Airport(icao=f"XX{number:02}", name=f"Field {number}", country="NO", elevation=0, lat=0,
                lon=0, tz="UTC")
        for number in range(5)
    )  # fmt: skip


@pytest.fixture
def staff(db: None) -> Any:
    """Create a user who can enter the admin and has these permissions."""

    def make(*codenames: str, name: str = "staff") -> User:
        user = User.objects.create_user(name, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        assert user.user_permissions.count() == len(codenames)
        return user

    return make
