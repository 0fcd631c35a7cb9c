"""Statistics of all tasks and workers, by a few queries that never read all finished tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

from django.db.models import Count, F, Min, Q, Sum, Value

from tasks_app.models import Task, Worker, aware
from tasks_app.states import TERMINAL, Status
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
#: The periods in which the overview counts finished tasks: their length, and how many of them.
LAST_HOUR, LAST_DAY = (MINUTE, 60), (HOUR, 24)
#: The most workers to list, the lost ones first.
WORKERS = 50
#: The most queues to list, those with the longest wait first.
QUEUES = 50


class Presence(Enum):
    """The state of a worker, as far as its row shows."""

    ALIVE = "alive"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Period:
    """A period, and how many tasks finished in it, by status."""

    start: datetime
    ended: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.ended.values())

    @property
    def failed(self) -> int:
        return self.ended.get(Status.FAILED, 0)


@dataclass(frozen=True, slots=True)
class Course:
    """Tasks that finished in consecutive periods of equal length. The last one is not over yet."""

    step: timedelta
    periods: list[Period]

    @property
    def since(self) -> datetime:
        return self.periods[0].start

    @property
    def ended(self) -> Counter[str]:
        return sum((Counter(period.ended) for period in self.periods), Counter())

    @property
    def total(self) -> int:
        return self.ended.total()

    @property
    def failed(self) -> int:
        return self.ended[Status.FAILED]


@dataclass(slots=True)
class Queue:
    name: str
    #: Tasks that could start now, and since when the first of them could have started.
    ready: int = 0
    oldest: datetime | None = None
    #: Tasks that wait for a time, such as that of their next attempt.
    later: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, with the parts of its state that change over time."""

    worker: Worker
    presence: Presence
    #: The number of tasks it runs now.
    running: int
    #: Seconds since its last heartbeat.
    silence: float


@dataclass(frozen=True, slots=True)
class Overview:
    now: datetime
    queues: list[Queue]
    #: The number of queues that are not listed.
    other_queues: int
    #: Totals of all queues.
    ready: int
    later: int
    running: int
    workers: list[Seen]
    #: The number of workers that are not listed.
    other_workers: int
    #: Counts of all workers.
    presences: Mapping[Presence, int]
    #: Threads of the live workers, and stuck threads in them.
    threads: int
    stuck: int
    last_hour: Course
    last_day: Course


def overview() -> Overview:
    """Return the state of all tasks and workers, by the database's clock."""
    now = database_now(alias())
    queues = _queues(now)
    counts = Task.primary.running().order_by().values_list("queue", "worker").annotate(n=Count("*"))
    held: Counter[Any] = Counter()
    for name, worker_id, count in counts:
        queues.setdefault(name, Queue(name)).running += count
        held[worker_id] += count
    some = sorted(queues.values(), key=_longest_waiting_first)
    workers, every = _workers(now), _every_worker(now)
    presences = {presence: every[presence.value] for presence in Presence}
    last_hour, last_day = _courses(now, [LAST_HOUR, LAST_DAY])
    return Overview(
        now=aware(now),
        queues=some[:QUEUES],
        other_queues=len(some[QUEUES:]),
        ready=sum(queue.ready for queue in some),
        later=sum(queue.later for queue in some),
        running=held.total(),
        workers=_seen(workers, {one.pk for one in workers if one.is_lost}, now, held),
        other_workers=max(0, sum(presences.values()) - len(workers)),
        presences=presences,
        threads=every["threads"],
        stuck=every["stuck"],
        last_hour=last_hour,
        last_day=last_day,
    )


def seen(workers: Sequence[Worker]) -> list[Seen]:
    """Return these workers with the parts of their state that change over time."""
    running = Task.primary.running().order_by().values_list("worker").annotate(n=Count("*"))
    now = database_now(alias())
    # There are few workers: their records are deleted after a day.
    lost = set(Worker.primary.lost(now).values_list("pk", flat=True))
    return _seen(workers, lost, now, dict(running))


def _queues(now: datetime) -> dict[str, Queue]:
    """Return the queues with waiting tasks, from one range of an index."""
    waiting = (
        Task.primary.filter(status=Status.PENDING)
        .order_by()
        .values_list("queue")
        .annotate(
            ready=Count("run_after", filter=Q(run_after__lte=now)),
            every=Count("*"),
            first=Min("run_after"),
        )
    )
    return {
        name: Queue(name, ready, aware(first) if ready else None, every - ready)
        for name, ready, every, first in waiting
    }


def _longest_waiting_first(queue: Queue) -> tuple[bool, Any, str]:
    return queue.oldest is None, queue.oldest or 0, queue.name


def _workers(now: datetime) -> list[Any]:
    """Return the most important workers, each with `is_lost`.

    Workers that did not sign off come first, the longest silent of them at the top: those are the
    lost ones. The others follow, the last to stop first.
    """
    workers = Worker.primary.annotate(is_lost=_lost(now))
    return list(workers.order_by(F("stopped_at").desc(nulls_first=True), "heartbeat_at")[:WORKERS])


def _every_worker(now: datetime) -> dict[str, int]:
    """Count all workers by presence, and the threads of the live ones."""
    stopped = Q(stopped_at__isnull=False)
    alive = ~stopped & ~_lost(now)
    return Worker.primary.aggregate(
        alive=Count("pk", filter=alive),
        lost=Count("pk", filter=_lost(now)),
        stopped=Count("pk", filter=stopped),
        threads=Sum("threads", filter=alive, default=0),
        stuck=Sum("stuck", filter=alive, default=0),
    )


def _lost(now: datetime) -> Q:
    return Q(pk__in=Worker.primary.lost(now).values("pk"))


def _seen(
    workers: Iterable[Worker], lost: Container[UUID], now: datetime, held: Mapping[Any, int]
) -> list[Seen]:
    def presence(worker: Worker) -> Presence:
        if worker.stopped_at is not None:
            return Presence.STOPPED
        return Presence.LOST if worker.pk in lost else Presence.ALIVE

    def silence(worker: Worker) -> float:
        return max(0.0, (now - worker.heartbeat_at).total_seconds())

    return [
        Seen(worker, presence(worker), held.get(worker.pk, 0), silence(worker))
        for worker in workers
    ]


def _courses(now: datetime, wanted: Sequence[tuple[timedelta, int]]) -> list[Course]:
    """Count finished tasks per period, for each pair of a period's length and a number of periods.

    One query does it all. For each period it counts one range of an index, without reading a row.
    """
    starts: list[list[datetime]] = []
    parts = []
    for number, (step, periods) in enumerate(wanted):
        first = since(now, (step, periods))
        starts.append([first + step * place for place in range(periods)])
        parts += [
            Task.primary.filter(
                status__in=sorted(TERMINAL), finished_at__gte=start, finished_at__lt=start + step
            )
            .order_by()
            .values_list("status")
            .annotate(course=Value(number), period=Value(index), n=Count("*"))
            for index, start in enumerate(starts[-1])
        ]
    found: dict[tuple[int, int], dict[str, int]] = {}
    for status, course, period, count in parts[0].union(*parts[1:], all=True).order_by():
        found.setdefault((course, period), {})[status] = count
    return [
        Course(
            step,
            [
                Period(aware(start), found.get((number, index), {}))
                for index, start in enumerate(starts[number])
            ],
        )
        for number, (step, _periods) in enumerate(wanted)
    ]


def since(now: datetime, course: tuple[timedelta, int]) -> datetime:
    """Return the beginning of the first period of such a course."""
    step, periods = course
    return _floor(now, step) - step * (periods - 1)


def _floor(time: datetime, step: timedelta) -> datetime:
    """Return the beginning of the minute, or of the hour."""
    start = time.replace(second=0, microsecond=0)
    return start.replace(minute=0) if step == HOUR else start
