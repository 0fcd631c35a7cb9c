"""What tasks did, told outside the database, so that neither kill nor rollback can take it back."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import uuid4

#: Names the folder in which the processes of a run write.
VARIABLE = "CHAOS_FOLDER"


def folder() -> Path:
    return Path(os.environ[VARIABLE])


def note(book: str, **entry: object) -> None:
    """Add a line to a book. One write to a file opened for appending: whole, or not at all."""
    os.write(_opened(folder() / book), json.dumps(entry).encode() + b"\n")


def entries(book: str) -> list[dict[str, str]]:
    path = folder() / book
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begin(key: str) -> str:
    """Record that a run of a task begins; return the name of the run."""
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
    """What one task did."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    #: Tasks it started, or tried to, in a transaction that it took back.
    children: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)


def read() -> dict[str, Deeds]:
    """All deeds, by the keys of the tasks."""
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
