"""The demonstration site's own settings, as a process reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

pytestmark = pytest.mark.once

PRINT_KEY = "from project import settings; print(settings.SECRET_KEY)"


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "SECRET_KEY"}
    return subprocess.Popen(
        [sys.executable, "-c", PRINT_KEY],
        cwd=ROOT,
        env=inherited | {"DATA_DIR": str(folder)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def key(process: subprocess.Popen[str]) -> str:
    return process.communicate()[0].strip()


def test_each_site_has_a_key_of_its_own(tmp_path: Path) -> None:
    """No process falls back to a key that everybody knows, as where its environment is missing."""
    [first, *others] = map(key, [start(tmp_path / "one") for _ in range(3)])
    assert len(first) == 50
    assert others == [first, first]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["secret_key"]
    assert (tmp_path / "one" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert key(start(tmp_path / "two")) != first
    assert key(start(tmp_path / "one", SECRET_KEY="given")) == "given"
