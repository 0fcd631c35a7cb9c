"""The long run: python -m tests.chaos, on SQLite and on PostgreSQL.

There are four runs on each database: kill processes; let many workers share many tasks undisturbed;
disturb the database; both. Each prints a table. With --kills, --tasks or --troubles it is a single
run of that kind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import SystemRandom
from typing import Any

DATABASES = ("sqlite", "postgresql")
#: No process is killed in this run, so no worker must look lost, however busy the machine is.
PEACE = {"TASK_LEASE_SECONDS": "30", "TASK_HEARTBEAT_SECONDS": "2"}
LONG: dict[str, dict[str, int]] = {
    "kills": {"kills": 250},
    "peace": {"tasks": 1000, "workers": 4, "backlog": 400},
    "trouble": {"troubles": 12},
    "both": {"kills": 30, "troubles": 6},
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=DATABASES, help="only this one")
    parser.add_argument("--kills", type=int, default=0, help="kill at least N processes")
    parser.add_argument("--tasks", type=int, default=0, help="start at least N tasks")
    parser.add_argument("--troubles", type=int, default=0, help="disturb the database N times")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--viewers", type=int, default=6)
    parser.add_argument("--backlog", type=int, default=80, help="unfinished tasks at a time")
    parser.add_argument("--seconds", type=float, default=600, help="end each run after this time")
    parser.add_argument(
        "--seed", type=int, default=SystemRandom().randrange(10**6), help="random seed"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON as well")
    return parser.parse_args()


def main() -> int:
    given = options()
    databases = [given.database] if given.database else list(DATABASES)
    if given.kills or given.tasks or given.troubles:
        return max(one(database, given) for database in databases)
    print(f"seed {given.seed}", flush=True)
    faults = [long(database, given.seed, given.seconds) for database in databases]
    return int(any(faults))


def long(database: str, seed: int, seconds: float) -> bool:
    """Make all runs on one database, print their table, and return whether anything failed."""
    began = time.monotonic()
    counts: dict[str, dict[str, list[Any]]] = {}
    faults = []
    for title, plan in LONG.items():
        words = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "tests.chaos", "--database", database, "--json"]
        run = subprocess.run(
            [*command, "--seed", str(seed), "--seconds", str(seconds), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        *said, last = run.stdout.splitlines() or [""]
        if run.returncode:
            faults.append(f"{title}:\n{run.stdout}")
        if last.startswith("{"):
            counts[title] = json.loads(last)
        print(
            f"  {database}, {title}: {'a fault' if run.returncode else 'as promised'}", flush=True
        )
        print("".join(f"    {line}\n" for line in said if line.startswith(("killed", "befell"))))
    print(table(database, counts, time.monotonic() - began))
    print(*faults, sep="\n")
    return bool(faults)


def table(database: str, counts: dict[str, dict[str, list[Any]]], seconds: float) -> str:
    titles = list(counts)
    names = list(counts[titles[0]]) if titles else []
    head = [f"{database}, {seconds:.0f} s", *titles, "in all", ""]
    lines = [head, ["---", *["---:"] * (len(titles) + 1), "---"]]
    for name in names:
        numbers = [counts[title][name][0] for title in titles]
        promised = "must be 0" if counts[titles[0]][name][1] else ""
        lines.append([name, *map(str, numbers), str(sum(numbers)), promised])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def one(database: str, given: argparse.Namespace) -> int:
    """Make one run, and return 0 if all promises held.

    If there are two databases, each runs in its own process, because Django has one set of
    settings.
    """
    if given.database is None:
        return subprocess.run(
            [sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--database", database],
            check=False,
        ).returncode
    # The child processes must end with this one, even on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "DATA_DIR": str(folder),
        "CHAOS_FOLDER": str(folder),
        # The resource tracker of multiprocessing cleans up after killed processes, and warns about
        # it.
        "PYTHONWARNINGS": "ignore:resource_tracker",
    }
    from tests.chaos.databases import KINDS

    kind = KINDS[database](folder)
    os.environ["DATABASE_URL"] = kind.url
    if not given.kills:
        os.environ |= kind.TROUBLE if given.troubles else PEACE

    import django

    django.setup()

    from django.core.management import call_command
    from django.db import connections

    from tests.chaos.arena import Arena, Plan

    plan = Plan(
        **{name: getattr(given, name) for name in vars(given).keys() & Plan.__annotations__.keys()}
    )
    began = time.monotonic()
    try:
        call_command("migrate", verbosity=0)
        arena = Arena(folder, kind, plan)
        tally = arena.run()
    finally:
        connections.close_all()
        kind.close()
    print(f"{database}, seed {plan.seed}, {time.monotonic() - began:.0f} s")
    for name, count, zero in tally.rows():
        print(f"  {name:<26}{count:>8}{'  must be 0' if zero else ''}")
    for title, counted in (("killed at", arena.struck), ("befell the database", arena.befell)):
        if counted:
            listed = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
            print(f"{title}: {listed}")
    for fault in tally.faults:
        print(f"FAULT {fault[:2000]}")
    if tally.holds:
        shutil.rmtree(folder)
    else:
        print(f"What the processes said is kept in {folder}")
    if given.json:
        print(json.dumps({name: [count, zero] for name, count, zero in tally.rows()}))
    return 0 if tally.holds else 1


if __name__ == "__main__":
    sys.exit(main())
