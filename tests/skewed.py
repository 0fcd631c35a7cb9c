"""`manage.py` on a host whose clock is wrong. The file named by CLOCK holds the seconds."""

import datetime
import os
import time
from pathlib import Path

from django.core.management import execute_from_command_line
from django.utils import timezone

FILE = Path(os.environ["CLOCK"])
_time, _now = time.time, timezone.now


def seconds() -> float:
    return float(FILE.read_text() or 0)


def skew() -> None:
    """Make the wall clock wrong. The monotonic clock stays right, as on any host."""
    time.time = lambda: _time() + seconds()
    timezone.now = lambda: _now() + datetime.timedelta(seconds=seconds())


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    skew()
    execute_from_command_line()
