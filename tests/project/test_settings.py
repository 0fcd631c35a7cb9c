"""The demonstration site's settings, as a process reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

pytestmark = [pytest.mark.once, pytest.mark.slow]

PRINT_KEY = "from project import settings; print(settings.SECRET_KEY)"


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "SECRET_KEY"}
    return subprocess.Popen(
        [sys.executable, "-c", PRINT_KEY],
        cwd=ROOT,
        env=inherited | {"DATA_DIR": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def key(process: subprocess.Popen[str]) -> str:
    return process.communicate()[0].strip()


def test_each_site_has_its_own_key(tmp_path: Path) -> None:
    """Without the environment variable, a process must not fall back to a well-known key."""
    [first, *others] = map(key, [start(tmp_path / "one") for _ in range(3)])
    assert len(first) == 50
    assert others == [first, first]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["secret_key"]
    assert (tmp_path / "one" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert key(start(tmp_path / "two")) != first
    assert key(start(tmp_path / "one", SECRET_KEY="given")) == "given"


def test_interrupted_first_start_leaves_no_empty_key(tmp_path: Path) -> None:
    (tmp_path / "secret_key").touch(mode=0o600)
    [first, *others] = map(key, [start(tmp_path) for _ in range(2)])
    assert len(first) == 50
    assert others == [first]


@pytest.mark.parametrize("case", ["readable", "writable", "anothers", "no file"])
def test_secret_key_that_others_may_know_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "secret_key"
    if case == "no file":
        path.symlink_to("/dev/null")
    elif case == "anothers" and os.geteuid() != 0:
        path.symlink_to("/etc/passwd")
    else:
        path.write_text("planted" * 8)
        path.chmod({"readable": 0o640, "writable": 0o602}.get(case, 0o600))
        if case == "anothers":
            os.chown(path, 65534, -1)
    refused = start(tmp_path)
    printed, complaint = refused.communicate()
    assert (refused.returncode, printed) == (1, "")
    assert complaint.splitlines()[-1] == (
        f"django.core.exceptions.ImproperlyConfigured: The secret key in {path} must be a file "
        f"that this user owns, with mode 0600: anybody who knows the key can sign in as any user. "
        f"Delete the file to create a new key, or set SECRET_KEY."
    )
