"""Invariants of all tasks, at any time and after any operation or crash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from tasks_app.models import Task
from tasks_app.states import LEGAL, EventType, Move, Status, Verb

#: Foreign keys that become null when the row they refer to is deleted, even in a finished task.
REFERENCES = frozenset({"owner_id", "worker_id", "retried_from_id"})
COLUMNS = [field.attname for field in Task._meta.concrete_fields]


class Fact(NamedTuple):
    id: int
    type: str
    data: dict[str, Any]


@dataclass
class Story:
    """A task's row and its history, read by one statement."""

    row: dict[str, Any]
    facts: list[Fact] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return Status(self.row["status"])

    def __str__(self) -> str:
        return "\n  ".join([f"{self.row}", *map(str, self.facts)])


@dataclass
class Seen:
    """The results of earlier checks. History only grows, and a finished task does not change."""

    facts: dict[UUID, list[Fact]] = field(default_factory=dict)
    over: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    gone: set[UUID] = field(default_factory=set)

    def compare(self, stories: dict[UUID, Story]) -> None:
        self.gone |= self.facts.keys() - stories.keys()
        back = self.gone & stories.keys()
        assert not back, f"deleted tasks came back: {back}"
        for task_id, story in stories.items():
            before = self.facts.get(task_id, [])
            _hold(story, story.facts[: len(before)] == before, f"its history was {before}")
            self.facts[task_id] = story.facts
            ended = self.over.get(task_id)
            if ended is not None:
                _hold(story, _same(ended, story.row), f"it had ended as {ended}")
            if story.status.is_terminal:
                self.over[task_id] = story.row


def check_invariants(seen: Seen | None = None) -> int:
    """Check every task, and return their number. Others may write at the same time.

    With `seen`, which all checks of one test share, compare with the previous check as well.
    """
    stories = _read()
    keys: dict[str, UUID] = {}
    for task_id, story in stories.items():
        _check_row(story)
        _check_history(story)
        key = story.row["unique_key"]
        if key is not None and not story.status.is_terminal:
            holder = keys.setdefault(key, task_id)
            _hold(story, holder == task_id, f"{holder} holds its unique key, too")
        source = stories.get(story.row.get("retried_from_id"))  # type: ignore[arg-type]
        if source is not None:
            retriable = source.status in (Status.FAILED, Status.CANCELLED)
            _hold(story, retriable, f"it was retried from a task that is {source.status}")
    if seen is not None:
        seen.compare(stories)
    return len(stories)


def _read() -> dict[UUID, Story]:
    # One statement means one snapshot: rows and events are from the same instant.
    events = ["events__id", "events__event_type", "events__data"]
    joined = Task.primary.order_by("pk", "events__id").values_list(*COLUMNS, *events)
    stories: dict[UUID, Story] = {}
    for values in joined.iterator():
        row = dict(zip(COLUMNS, values, strict=False))
        story = stories.setdefault(row["id"], Story(row))
        number, kind, data = values[len(COLUMNS) :]
        if number is not None:
            story.facts.append(Fact(number, kind, data))
    return stories


def _check_row(story: Story) -> None:
    row = story.row
    valid = row["status"] in Status.values
    _hold(story, valid, "its status is none")
    running = story.status == Status.RUNNING
    for column in ("fencing_token", "lease_expires_at"):
        _hold(story, (row[column] is not None) == running, f"{column} is set while running only")
    _hold(story, not running or row["started_at"] is not None, "it runs and never started")
    ended = row["finished_at"] is not None
    _hold(story, ended == story.status.is_terminal, "finished_at is set when it has ended only")
    failed = story.status == Status.FAILED
    _hold(story, bool(row["error_type"]) == failed, "it bears an error when it has failed only")
    least = 0 if story.status in (Status.PENDING, Status.CANCELLED) else 1
    _hold(story, least <= row["attempt"] <= row["max_attempts"], "its attempt is out of range")
    progress = row["progress"]
    _hold(story, progress is None or 0 <= progress <= 1, "its progress is no fraction")


def _check_history(story: Story) -> None:
    """Replay the history with the table of legal moves. It must be legal and explain the row."""
    ids = [fact.id for fact in story.facts]
    _hold(story, ids == sorted(set(ids)), "its events are out of order")
    status: Status | None = None
    attempt = 0
    asked = 0
    for fact in story.facts:
        verb, move = _move(story, status, fact)
        status = move.target
        match verb:
            case Verb.CLAIM:
                attempt += 1
                _hold(story, fact.data["attempt"] == attempt, f"attempt {attempt} says otherwise")
            case Verb.RELEASE:
                attempt -= 1
            case Verb.REQUEST_CANCEL | Verb.WITHDRAW:
                asked += 1
            case Verb.RETRY:
                _hold(story, not asked, "it waits again after somebody cancelled it")
    _hold(story, status == story.status, f"its history says it is {status}")
    _hold(story, attempt == story.row["attempt"], f"its history says it had {attempt} attempts")
    _hold(story, asked <= 1, "it was asked to cancel twice")
    requested = story.row["cancel_requested_at"] is not None
    _hold(story, requested == bool(asked), "its cancel request and its history disagree")


def _move(story: Story, status: Status | None, fact: Fact) -> tuple[Verb, Move]:
    for verb, move in LEGAL.items():
        if move.event == EventType(fact.type) and (
            status in move.sources if status else not move.sources
        ):
            return verb, move
    raise AssertionError(f"{fact} came while {status}, of\n  {story}")


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return all(
        repr(after[column]) == repr(value) or (column in REFERENCES and after[column] is None)
        for column, value in before.items()
    )


def _hold(story: Story, holds: bool, fault: str) -> None:
    assert holds, f"{fault}, of\n  {story}"
