"""The built package, and the environment that make prepares."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pip
import pytest

from tests.harness import ROOT

pytestmark = [pytest.mark.once, pytest.mark.slow]


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_package_contains_exactly_the_sources(tmp_path: Path) -> None:
    """Even if an earlier build left files beside them."""
    source = tmp_path / "source"
    for name in ("tasks_app", "tests"):
        caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=caches)
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", ".gitignore"):
        shutil.copyfile(ROOT / name, source / name)
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    for stale in ("build/lib/tasks_app/stale.py", "data/db.sqlite3", ".venv/stale.py"):
        (source / stale).parent.mkdir(parents=True)
        (source / stale).touch()
    built = run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), cwd=source)
    assert built.returncode == 0, built.stderr
    assert {path.name for path in (source / "build").iterdir()} == {"lib"}

    [wheel], [sdist] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        about = message_from_string(archive.read(metadata).decode())
    assert names == {name for name in files if name.startswith("tasks_app/")}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed == {*files, "PKG-INFO"}

    assert about["Author"] == "django-tasks-app contributors"
    assert about["Keywords"]
    assert "Development Status :: 4 - Beta" in about.get_all("Classifier", [])
    page = str(about.get_payload())
    assert page.startswith((ROOT / "README.md").read_text().splitlines()[0])
    assert all(link.startswith("http") for link in re.findall(r"\]\(([^)]*)\)", page))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Create a checkout with an incomplete environment."""
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    venv = run(sys.executable, "-m", "venv", "--without-pip", ".venv", cwd=tmp_path)
    assert venv.returncode == 0, venv.stderr
    return tmp_path


def test_incomplete_environment_is_reported(checkout: Path) -> None:
    done = run("make", "run", cwd=checkout)
    assert done.returncode == 2
    assert done.stderr.startswith(
        ".venv is incomplete: it has no pip. Remove it, and run make again: rm -r .venv\n"
    )


def test_environment_whose_python_is_gone_is_recreated(checkout: Path) -> None:
    """After an upgrade of the system's Python its links are broken."""
    for link in (checkout / ".venv" / "bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nonexistent/python3")
    done = run("make", ".venv/bin/python", f"PYTHON={sys.executable}", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert run(".venv/bin/python", "-m", "pip", "--version", cwd=checkout).returncode == 0


def test_missing_network_is_reported(checkout: Path) -> None:
    done = run(
        "make",
        "run",
        cwd=checkout,
        PYTHONPATH=str(Path(pip.__file__).parents[1]),
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL="http://127.0.0.1:9/",
        PIP_RETRIES="0",
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "The package index cannot be reached, and the first run needs it."
    )
    assert "Traceback" not in done.stderr
    assert not (checkout / ".venv" / ".demo").exists()
