"""The short form of `make chaos`, each run in a process and a database of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.db import connection

from tests.harness import ROOT

pytestmark = pytest.mark.timeout(400)


def chaos(**plan: int) -> dict[str, int]:
    """Run to the end, within which all promises hold; return the counts."""
    options = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.chaos", "--database", connection.vendor, "--json"]
    run = subprocess.run(
        [*command, "--seconds", "240", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    counts = json.loads(run.stdout.splitlines()[-1])
    return {name: count for name, (count, _must_be_zero) in counts.items()}


def test_killed_anywhere_nothing_is_lost_and_nothing_done_twice() -> None:
    counts = chaos(kills=30)
    assert counts["kills"] >= 30
    assert counts["rescued"] > 0
    assert counts["viewers"] > 1


def test_many_workers_and_tasks_tally_exactly() -> None:
    counts = chaos(tasks=200, workers=4, backlog=100)
    assert counts["tasks"] >= 200
    # Flaky tasks and those that break have more than one; one that was cancelled before it began
    # has an attempt and no run. The audit compares them task by task.
    assert counts["attempts"] >= counts["runs begun"] > counts["tasks"]


def test_a_database_in_trouble_costs_no_task() -> None:
    counts = chaos(troubles=3)
    assert counts["troubles"] == 3
