"""The long run: python -m tests.chaos --kills 500, on SQLite and on PostgreSQL."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import SystemRandom
from typing import Any

KINDS = ("sqlite", "postgresql")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--database", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--kills", type=int, default=0, help="kill so many processes, on each")
    parser.add_argument("--tasks", type=int, default=0, help="start so many tasks, at least")
    parser.add_argument("--troubles", type=int, default=0, help="harm the database so often")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--viewers", type=int, default=6)
    parser.add_argument("--backlog", type=int, default=40, help="unfinished tasks at a time")
    parser.add_argument("--seconds", type=float, default=600, help="end by then")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    parser.add_argument("--json", action="store_true", help="print the counts as JSON as well")
    return parser.parse_args()


def main() -> int:
    given = options()
    if given.database != "both":
        return one(given)
    words = [word for name, value in vars(given).items() for word in _option(name, value)]
    command = [sys.executable, "-m", "tests.chaos", *words]
    codes = [
        subprocess.run([*command, "--database", kind], check=False).returncode for kind in KINDS
    ]
    return max(codes)


def _option(name: str, value: Any) -> list[str]:
    if name == "database" or value is False:
        return []
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def one(given: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "DATA_DIR": str(folder),
        "CHAOS_FOLDER": str(folder),
    }
    from tests.chaos.databases import DATABASES

    database = DATABASES[given.database](folder)
    os.environ["DATABASE_URL"] = database.url
    if given.troubles and given.database == "postgresql":
        # Its workers are away for as long as a restart takes, and that must not cost a lease.
        os.environ |= {"TASK_LEASE_SECONDS": "10", "TASK_HEARTBEAT_SECONDS": "1"}
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from tests.chaos.arena import Arena, Plan

    plan = Plan(
        **{name: getattr(given, name) for name in vars(given).keys() & Plan.__annotations__.keys()}
    )
    call_command("migrate", verbosity=0)
    began = time.monotonic()
    arena = Arena(folder, database, plan)
    try:
        tally = arena.run()
    finally:
        connections.close_all()
        database.close()
    print(f"\n{given.database}, seed {plan.seed}, {time.monotonic() - began:.0f} s")
    for name, count, zero in tally.rows():
        mark = "" if not zero else "  must be 0" if count else "  as promised"
        print(f"  {name:<26}{count:>8}{mark}")
    for title, counted in (("killed at", arena.struck), ("befell the database", arena.befell)):
        if counted:
            told = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
            print(f"  {title}: {told}")
    for fault in tally.faults:
        print(f"  FAULT {fault[:2000]}")
    if given.json:
        print(json.dumps({name: count for name, count, _ in tally.rows()}))
    if tally.holds:
        shutil.rmtree(folder)
    else:
        print(f"  What the processes said is kept in {folder}")
    return 0 if tally.holds else 1


if __name__ == "__main__":
    sys.exit(main())
