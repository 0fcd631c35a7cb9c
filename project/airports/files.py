"""Files that tasks read and write, under MEDIA_ROOT.

A file has a random name that only its task knows. The task's parameters name an upload, and the
task's result names a result. So a result file becomes visible in the same commit that completes the
task, and two attempts of one task never write the same file. Each new file removes files that are
older than any task that could name them.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from tasks_app.conf import DAY, task_settings

NAME_PATTERN = r"[0-9a-f]{32}\.csv"
_UNFINISHED = ".part"


class Result:
    """A file that is being written: write to `text`. It gets its `name` once it is complete."""

    def __init__(self, text: TextIO, name: str) -> None:
        self.text = text
        self.name = name


@contextmanager
def new_result() -> Iterator[Result]:
    """Open a file for a task's result. If writing fails, the file is deleted."""
    folder = _folder()
    _sweep(folder)
    name = _new_name()
    path = folder / name
    draft = path.with_suffix(_UNFINISHED)
    try:
        with open(draft, "x", encoding="utf-8", newline="", opener=_private) as text:
            yield Result(text, name)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def keep_upload(upload: UploadedFile[bytes]) -> str:
    """Store an uploaded file for a task to read and return its name."""
    folder = _folder()
    _sweep(folder)
    name = _new_name()
    with open(folder / name, "xb", opener=_private) as file:
        for chunk in upload.chunks():
            file.write(chunk)
    return name


def discard(name: str) -> None:
    """Remove a file because no task will read it."""
    if path := find(name):
        path.unlink(missing_ok=True)


def find(name: object) -> Path | None:
    """Return the path of a stored file, or None if there is no such file (any more)."""
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        return None
    path = _folder() / name
    return path if path.is_file() else None


def _new_name() -> str:
    return f"{uuid.uuid4().hex}.csv"


def _private(path: str, flags: int) -> int:
    """Open a file that only the site's own user can read, with any umask."""
    return os.open(path, flags, 0o600)


def _folder() -> Path:
    folder = Path(settings.MEDIA_ROOT) / "airports"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sweep(folder: Path) -> None:
    retentions = task_settings().retention_seconds, task_settings().failed_retention_seconds
    if None in retentions:
        return
    # One more day, for tasks that wait or run for a long time.
    oldest = time.time() - max(filter(None, retentions)) - DAY
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # another process swept it first
