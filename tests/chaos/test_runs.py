"""The short form of `make chaos`. Each run has its own process and database."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.db import connection

from tests.harness import ROOT

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


def chaos(**plan: int) -> dict[str, int]:
    """Run to the end, check that all promises held, and return the counts."""
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


def test_kills_lose_no_task_and_repeat_none() -> None:
    counts = chaos(kills=30)
    assert counts["kills"] >= 30
    assert counts["rescued"] > 0
    assert counts["viewers"] > 1


def test_many_workers_and_tasks_add_up_exactly() -> None:
    counts = chaos(tasks=200, workers=4, backlog=100)
    assert counts["tasks"] >= 200
    # Flaky and broken tasks have several attempts. A task cancelled before its start has an attempt
    # and no run. The audit compares them task by task.
    assert counts["attempts"] >= counts["runs begun"] > counts["tasks"]


def test_disturbed_database_loses_no_task() -> None:
    counts = chaos(troubles=3)
    assert counts["troubles"] == 3
