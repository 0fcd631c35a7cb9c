"""The browser tests on a machine without Chromium."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.slow]

HERE = Path(__file__).parent


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run a file of browser tests, and one without a browser, without Chromium."""
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
            *(str(HERE / "test_cancel.py"), f"{HERE.parent / 'templatetags'}", "-k", "cancel"),
        ],
        env=inherited | environment | {"CHROMIUM": "no-such-browser"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_only_browser_tests_are_skipped_with_a_hint(
    tmp_path: Path,
) -> None:
    run_ = run(TEST_DATABASE_FILE=str(tmp_path / "test.sqlite3"))
    assert run_.returncode == 0, run_.stdout + run_.stderr
    *_, counts, last = run_.stdout.strip().splitlines()
    assert "skipped" in counts
    assert "passed" in counts
    assert last == (
        "The browser tests were skipped, for there is no Chromium here. To run them as well: "
        "`apt-get install chromium`, or set CHROMIUM to the path of one."
    )


def test_ci_skips_nothing() -> None:
    run_ = run(CI="true")
    assert run_.returncode == 4
    assert "There is no Chromium, and CI skips nothing" in run_.stderr
