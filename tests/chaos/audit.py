"""The audit after a run: do the database, the ledger and the viewers agree?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any
from uuid import UUID

from tasks_app.exceptions import WorkerLost
from tasks_app.live.cursor import Cursor
from tasks_app.models import Task, TaskEvent
from tasks_app.states import TERMINAL_EVENTS, EventType, Status
from tests.chaos import ledger, tasks
from tests.chaos.load import OLD, Feeder
from tests.chaos.viewers import Saw, Viewer

#: Marks the numbers that must be zero.
ZERO = {"zero": True}


def zero() -> Any:
    return field(default=0, metadata=ZERO)


@dataclass
class Tally:
    """The counts of a run, and descriptions of what was wrong."""

    kills: int = 0
    pauses: int = 0
    troubles: int = 0
    tasks: int = 0
    attempts: int = 0
    runs_begun: int = 0
    runs_cut_short: int = 0
    released: int = 0
    rescued: int = 0
    pruned: int = 0
    stale_writes_refused: int = 0
    viewers: int = 0
    connections: int = 0
    events_seen: int = 0
    lost: int = zero()
    stuck: int = zero()
    doubled: int = zero()
    doubled_terminal_events: int = zero()
    missing_terminal_events: int = zero()
    stale_writes_accepted: int = zero()
    wrongly_rescued: int = zero()
    events_missed: int = zero()
    events_doubled: int = zero()
    events_out_of_order: int = zero()
    other_faults: int = zero()
    faults: list[str] = field(default_factory=list)

    def fault(self, count: str, description: str, number: int = 1) -> None:
        setattr(self, count, getattr(self, count) + number)
        self.faults.append(f"{count}: {description}")

    @property
    def holds(self) -> bool:
        return not self.faults

    def rows(self) -> list[tuple[str, int, bool]]:
        return [
            (one.name.replace("_", " "), getattr(self, one.name), one.metadata == ZERO)
            for one in fields(self)
            if one.name != "faults"
        ]


@dataclass
class History:
    """The history of one task."""

    kinds: list[str] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def count(self, kind: EventType) -> int:
        return self.kinds.count(kind)

    @property
    def released(self) -> int:
        return max(self.count(EventType.QUEUED) - 1, 0)


def histories() -> dict[UUID, History]:
    by_task: dict[UUID, History] = defaultdict(History)
    events = TaskEvent.objects.exclude(task__name=OLD).order_by("id")
    for number, task_id, kind, data in events.values_list("id", "task_id", "event_type", "data"):
        by_task[task_id].ids.append(number)
        by_task[task_id].kinds.append(kind)
        if kind == EventType.STARTED:
            by_task[task_id].workers.append(data["worker"])
    return by_task


def audit_tasks(tally: Tally, feeder: Feeder, *, calm: bool) -> None:
    """Compare rows, histories, the ledger and the feeder's acknowledgements."""
    deeds = ledger.read()
    histories_by_task = histories()
    by_key: dict[str, list[Task]] = defaultdict(list)
    for task in Task.objects.exclude(name=OLD).select_related("worker"):
        by_key[task.params["key"]].append(task)
    promised = feeder.acknowledged.keys() | {
        child for deed in deeds.values() for child in deed.children
    }
    for key in promised - by_key.keys():
        tally.fault("lost", f"{key} was acknowledged, and there is no such task")
    ghosts = {ghost for deed in deeds.values() for ghost in deed.ghosts}
    for key in ghosts & (by_key.keys() | {key for key in deeds if deeds[key].begun}):
        tally.fault("doubled", f"{key} was started in a transaction that was rolled back")
    tally.tasks = sum(map(len, by_key.values()))
    for key, found in by_key.items():
        if len(found) > 1:
            tally.fault("doubled", f"{key} has {len(found)} rows")
        for task in found:
            _audit_task(tally, key, task, histories_by_task[task.pk], deeds[key], feeder)
            if calm:
                _audit_calm(tally, key, task, histories_by_task[task.pk], deeds[key])


def _audit_task(
    tally: Tally, key: str, task: Task, history: History, deeds: ledger.Deeds, feeder: Feeder
) -> None:
    waits = key in feeder.delayed and task.status == Status.PENDING and task.attempt == 0
    story = f"{key} ({task.name}, {task.status}, {task.attempt}/{task.max_attempts}): "
    story += f"{history.kinds}, begun {deeds.begun}, ended {deeds.ended}, {task.error_type}"
    if not task.is_terminal and not waits:
        tally.fault("stuck", story)
    ends = sum(kind in TERMINAL_EVENTS for kind in history.kinds)
    if ends > 1:
        tally.fault("doubled_terminal_events", story)
    if task.is_terminal and ends != 1:
        tally.fault("missing_terminal_events", story)
    claims = history.count(EventType.STARTED)
    tally.attempts += task.attempt
    tally.runs_begun += len(deeds.begun)
    tally.runs_cut_short += len(deeds.begun) - len(deeds.ended)
    tally.released += history.released
    # Each run needs its own claim. Each claim beyond the attempts needs a release.
    if len(deeds.begun) > claims or claims - history.released > task.max_attempts:
        tally.fault("doubled", story)
    if task.name == tasks.Once.name() and len(deeds.begun) > 1:
        tally.fault("doubled", f"must never begin twice: {story}")
    if EventType.CANCEL_REQUESTED in history.kinds:
        after = history.kinds[history.kinds.index(EventType.CANCEL_REQUESTED) :]
        if EventType.STARTED in after:
            tally.fault("doubled", f"begun after it was cancelled: {story}")
    if task.status == Status.COMPLETED:
        if task.result not in deeds.ended:
            tally.fault("lost", f"completed by a run that never ended: {task.result}, {story}")
        # The result comes from the last claim's worker. The row names that worker too.
        pids = {int(history.workers[-1].rpartition(":")[2]), task.worker.pid if task.worker else 0}
        if pids != {ledger.pid_of(task.result)}:
            tally.fault("stale_writes_accepted", f"{task.result} of {history.workers}, {story}")
        if task.progress_text not in ("", task.result):
            tally.fault("stale_writes_accepted", f"{task.progress_text!r}, {story}")


def _audit_calm(tally: Tally, key: str, task: Task, history: History, deeds: ledger.Deeds) -> None:
    """Without kills, attempts, ends and ledger must match exactly."""
    claims = history.count(EventType.STARTED) - history.released
    story = f"{key} ({task.name}, {task.status}): {history.kinds}, {deeds}, {task.error_type}"
    broken = task.name in (tasks.Broken.name(), tasks.BrokenThrice.name())
    exact = len(deeds.begun) == claims == task.attempt
    if task.status == Status.COMPLETED:
        exact &= len(deeds.ended) == 1 and not broken
        exact &= task.attempt == (3 if task.name == tasks.Flaky.name() else 1)
    elif task.status == Status.FAILED:
        exact &= not deeds.ended and task.error_type == ("ValueError" if broken else "TaskTimedOut")
        exact &= task.attempt == (task.max_attempts if broken else 1)
    elif task.status == Status.CANCELLED:
        # It may have been cancelled between its claim and its start.
        exact = len(deeds.begun) in (claims, claims - 1) and claims == task.attempt
    if not exact:
        tally.fault("other_faults", f"does not tally: {story}")


def audit_rescues(tally: Tally, *, wrong: bool) -> None:
    """Count rescued tasks. If no worker was ever away, each is an error."""
    ends = TaskEvent.objects.filter(event_type__in=[EventType.FAILED, EventType.RETRY_SCHEDULED])
    for data in ends.values_list("data", flat=True):
        error = data["error"]
        # A shutdown also reports WorkerLost for a task that must not start again.
        if error["type"] == WorkerLost.__name__ and "shut down" not in error["message"]:
            tally.rescued += 1
    if wrong and tally.rescued:
        tally.fault("wrongly_rescued", f"{tally.rescued} tasks of living workers", tally.rescued)


def audit_old(tally: Tally, made: int) -> None:
    left = Task.objects.filter(name=OLD).count()
    tally.pruned = made - left
    if left:
        tally.fault("other_faults", f"{left} old tasks were not pruned")


def audit_viewers(tally: Tally, viewers: Collection[Viewer]) -> None:
    tally.viewers = len(viewers)
    history = events_by_task()
    for viewer in viewers:
        _audit_viewer(tally, viewer, history)


def events_by_task() -> dict[UUID, list[TaskEvent]]:
    """Return all visible events. Child tasks have no owner, so no viewer watches them."""
    history: dict[UUID, list[TaskEvent]] = defaultdict(list)
    for event in TaskEvent.objects.filter(task__owner__isnull=False).order_by("id").defer("data"):
        history[event.task_id].append(event)
    return history


def _audit_viewer(tally: Tally, viewer: Viewer, history: dict[UUID, list[TaskEvent]]) -> None:
    tally.connections += viewer.connections
    tally.events_seen += sum(len(saw.facts) for saw in viewer.saw.values())
    if viewer.is_alive():
        tally.fault("other_faults", f"{viewer.name} does not come to an end")
    for task_id, saw in viewer.saw.items():
        description = f"{viewer.name} saw {saw} of {task_id}"
        if saw.doubled:
            tally.fault("events_doubled", description, saw.doubled)
        if saw.out_of_order:
            tally.fault("events_out_of_order", description, saw.out_of_order)
        if saw.terminal > 1:
            tally.fault("doubled_terminal_events", description)
    missed = missed_by(viewer, history)
    if missed:
        counts = Counter(kind for _, kind in missed)
        seen = {number: viewer.saw.get(task_id, Saw()).facts for (task_id, number), _ in missed}
        tally.fault("events_missed", f"{viewer.name}: {counts}, {missed}, saw {seen}", len(missed))
    if viewer.task_id and viewer.saw.get(viewer.task_id, Saw()).terminal != 1:
        tally.fault("events_missed", f"{viewer.name} saw no end: {viewer.saw}")


def missed_by(
    viewer: Viewer, history: dict[UUID, list[TaskEvent]]
) -> list[tuple[tuple[UUID, int], str]]:
    """Return the events since the opening that the viewer did not see."""
    if not viewer.since:
        return []
    since = Cursor.parse(viewer.since)
    followed: Iterable[UUID] = [viewer.task_id] if viewer.task_id else list(history)
    return [
        ((task_id, event.pk), event.event_type)
        for task_id in followed
        for event in history[task_id]
        if not since.covers(event.pk, event.transaction)
        and event.pk not in viewer.saw.get(task_id, Saw()).ids
    ]
