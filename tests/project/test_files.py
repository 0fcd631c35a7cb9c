import os
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from project.airports import files
from tasks_app.conf import DAY


def test_result_appears_when_it_is_complete(media: Path) -> None:
    with files.new_result() as result:
        result.text.write("half")
        assert files.find(result.name) is None
    found = files.find(result.name)
    assert found is not None
    assert found.read_text() == "half"
    assert list(media.iterdir()) == [found]


def test_files_are_readable_only_by_their_user(media: Path) -> None:
    before = os.umask(0)
    try:
        files.keep_upload(SimpleUploadedFile("x.csv", b"data"))
        with files.new_result():
            pass
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in media.iterdir()] == [0o600, 0o600]


def test_failed_result_leaves_no_file(media: Path) -> None:
    with pytest.raises(UnicodeEncodeError), files.new_result() as result:
        result.text.write("half \ud800")
    assert list(media.iterdir()) == []


def test_upload_is_kept_until_discarded() -> None:
    name = files.keep_upload(SimpleUploadedFile("../../evil.csv", b"data"))
    found = files.find(name)
    assert found is not None
    assert found.read_bytes() == b"data"
    files.discard(name)
    assert files.find(name) is None


@pytest.mark.parametrize("name", [None, 3, "", "../x.csv", "x.csv", "0" * 32, "0" * 32 + ".csv\n"])
def test_only_generated_names_are_found(media: Path, name: object) -> None:
    media.mkdir(parents=True)
    (media / "x.csv").touch()
    assert files.find(name) is None


def test_files_older_than_their_tasks_are_deleted(settings: Any, media: Path) -> None:
    settings.TASK_RETENTION_SECONDS = DAY
    settings.TASK_FAILED_RETENTION_SECONDS = 2 * DAY
    names = [files.keep_upload(SimpleUploadedFile("x.csv", b"data")) for _ in range(2)]
    for name, age in zip(names, (2.9 * DAY, 3.1 * DAY), strict=True):
        then = time.time() - age
        os.utime(media / name, (then, then))
    with files.new_result():
        pass
    assert [files.find(name) is not None for name in names] == [True, False]


def test_files_are_kept_if_tasks_are_kept(settings: Any, media: Path) -> None:
    settings.TASK_RETENTION_SECONDS = None
    name = files.keep_upload(SimpleUploadedFile("x.csv", b"data"))
    os.utime(media / name, (0, 0))
    with files.new_result():
        pass
    assert files.find(name)
