"""A record of what tasks did, outside the database, so that no kill or rollback can undo it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import uuid4

#: The environment variable with the folder to which the processes of a run write.
VARIABLE = "CHAOS_FOLDER"


def folder() -> Path:
    return Path(os.environ[VARIABLE])


def note(book: str, **entry: object) -> None:
    """Append a line to a book. A single write to a file in append mode is atomic."""
    os.write(_opened(folder() / book), json.dumps(entry).encode() + b"\n")


def entries(book: str) -> list[dict[str, str]]:
    path = folder() / book
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begin(key: str) -> str:
    """Record that a run of a task starts, and return the name of the run."""
    run = f"{key}/{os.getpid()}/{uuid4().hex[:8]}"
    note("ledger", what="begin", key=key, run=run)
    return run


def end(run: str) -> None:
    note("ledger", what="end", key=key_of(run), run=run)


def key_of(run: str) -> str:
    return run.split("/")[0]


def pid_of(run: str) -> int:
    return int(run.split("/")[1])


@dataclass
class Deeds:
    """The recorded actions of one task."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    #: Tasks that it started, and tasks that it started in a transaction that was rolled back.
    children: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)


def read() -> dict[str, Deeds]:
    """Return all recorded actions by task key."""
    deeds: dict[str, Deeds] = defaultdict(Deeds)
    for entry in entries("ledger"):
        of = deeds[entry["key"]]
        {
            "begin": of.begun,
            "end": of.ended,
            "child": of.children,
            "ghost": of.ghosts,
        }[entry["what"]].append(entry["run"])
    return deeds


def total(deeds: Iterable[Deeds]) -> int:
    return sum(len(of.begun) for of in deeds)


@cache
def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
