import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.harness import eventually
from tests.project.site import ROOT, environment, running

pytestmark = [pytest.mark.once, pytest.mark.slow]


def refused(data: Path, port: int | str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "project.run"],
        cwd=ROOT,
        env=environment(data, port),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/login/", timeout=10) as response:
        return response.status == 200


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_port_in_use_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = refused(tmp_path / "data", port)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Cannot use port {port}: Address already in use. Stop the program that uses it, or choose "
        f"another: make run PORT={port + 1}\n"
    )
    assert ended.stdout == ""
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "8000.5", "²"])
def test_invalid_port_is_reported(tmp_path: Path, port: str) -> None:
    ended = refused(tmp_path, port)
    assert ended.returncode == 1
    assert ended.stderr == f"PORT must be a number from 1 to 65535, not {port!r}.\n"


def test_reports_when_ready_and_stops_cleanly(tmp_path: Path) -> None:
    with running(tmp_path) as site:
        assert site.printed("^Site: (.*)$")[1] == f"{site.url}/"
        assert site.printed("^Login: (.*)$")[1] == "demo / demo-airports"
        assert answers(site.url)
        worker = int(site.printed(r"Worker .*:(\d+) started")[1])
        assert site.stop(signal.SIGINT) == 0
    assert site.lines[-1] == "Stopped."
    assert sum(bool(re.search("Worker .* is stopping", line)) for line in site.lines) == 1
    assert not is_alive(worker)
    # The database and the key are readable only by their user.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"db.sqlite3", "secret_key"}
    assert not [path for path in files if path.stat().st_mode & 0o077]


def test_second_start_keeps_the_data(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    change = [sys.executable, "manage.py", "shell", "-c"]
    code = (
        "from django.contrib.auth.models import User;"
        "user = User.objects.get(); user.set_password('mine'); user.save()"
    )
    subprocess.run([*change, code], cwd=ROOT, env=environment(tmp_path, 1), check=True)
    with running(tmp_path) as site:
        assert site.printed("^Login: (.*)$")[1] == "demo / (the password you chose)"


def test_dead_child_is_restarted(tmp_path: Path) -> None:
    with running(tmp_path) as site:
        worker = int(site.printed(r"Worker .*:(\d+) started")[1])
        os.kill(worker, signal.SIGKILL)
        site.printed("^The worker ended by SIGKILL. Restarting it")
        assert int(site.printed(r"Worker .*:(\d+) started", times=2)[1]) != worker
        assert site.stop() == 0


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    with running(tmp_path) as site:
        worker = int(site.printed(r"Worker .*:(\d+) started")[1])
        site.stop(signal.SIGKILL)
        # stop() reads the output to its end, which comes when the last process has closed it.
        assert re.search(r"Worker .* stopped \(tasks ended: \d+\)$", site.lines[-1])
    status = Path(f"/proc/{worker}/status")

    def gone() -> bool:
        """Return whether the process is gone or a zombie."""
        try:
            return "Z (zombie)" in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    eventually(gone, what="the worker is gone")
