import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_site(tmp_path: Path, port: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "project.run"],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(tmp_path / "data"), "PORT": port},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_site(tmp_path, str(port))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Port {port} cannot be used: Address already in use. Stop what uses it, or choose "
        f"another: make run PORT={port + 1}\n"
    )
    assert ended.stdout == ""
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "8000.5", "²"])
def test_a_port_that_is_none_is_told(tmp_path: Path, port: str) -> None:
    ended = run_site(tmp_path, port)
    assert ended.returncode == 1
    assert ended.stderr == f"PORT must be a number from 1 to 65535, not {port!r}.\n"
