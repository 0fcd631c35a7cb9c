"""A run: a site under load whose processes are killed, and an audit of the outcome."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from uuid import UUID

import httpx
import psycopg
from django.contrib.auth.models import User
from django.db import DatabaseError, InterfaceError, connection
from django.test import Client

from tasks_app.conf import task_settings
from tasks_app.models import Task
from tasks_app.worker.stopping import ExitCode
from tests.chaos import failpoints, ledger
from tests.chaos.audit import (
    Tally,
    audit_old,
    audit_rescues,
    audit_tasks,
    audit_viewers,
    events_by_task,
    missed_by,
)
from tests.chaos.databases import Database
from tests.chaos.doomed import Doomed
from tests.chaos.load import Feeder
from tests.chaos.viewers import Viewer
from tests.harness import PATIENCE, eventually, free_port
from tests.invariants import Seen, check_invariants

#: Seconds that a process lives if it does not reach its failpoint.
REPRIEVE = (3.0, 7.0)
OUTSIDE = "outside"
#: This many kills reach every failpoint.
EXHAUSTIVE = 200
STALE = "was taken from this worker"
#: A process logs these only if something is wrong that a kill does not explain.
ASGI_FAILED = "Exception in ASGI application"
ALARMS = (
    ASGI_FAILED,
    "The relay failed",
    "cannot be sent",
    "AssertionError",
    "IntegrityError",
    "could not be removed",
    "Exception in thread",
    "KeyError",
)


@dataclass(frozen=True)
class Plan:
    """The actions of a run, and their numbers. The run ends when all numbers are reached."""

    kills: int = 0
    tasks: int = 0
    troubles: int = 0
    workers: int = 3
    threads: int = 4
    viewers: int = 6
    backlog: int = 80
    seed: int = 0
    #: The run ends after this time, even if the counts are not reached.
    seconds: float = 600.0

    @property
    def calm(self) -> bool:
        return not self.kills and not self.troubles


@dataclass(frozen=True)
class Fate:
    """The planned end of a process."""

    name: str
    passes: int = 1
    #: Seconds after its start until SIGTERM, SIGSTOP and SIGKILL.
    terminate: float = float("inf")
    pause: float = float("inf")
    kill: float = float("inf")

    @property
    def is_failpoint(self) -> bool:
        return "." in self.name


NEVER = Fate("never")


@dataclass
class Slot:
    """A position for a process. When one dies, the next one takes it."""

    role: str
    command: list[str]
    process: Doomed | None = None
    fate: Fate = NEVER
    #: Time at which the process was ready, by the monotonic clock.
    ready: float = float("inf")
    done: set[str] = field(default_factory=set)
    paused: float = 0.0


class Fates:
    """Deals each failpoint of a role once, in random order, and then starts again.

    A failpoint that a process did not reach is dealt again until a process reaches it.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self._decks: dict[str, list[Fate]] = {}
        self._missed: dict[str, list[Fate]] = {}

    def draw(self, role: str) -> Fate:
        deck = self._decks.setdefault(role, [])
        if not deck:
            deck.extend([*self._new(role), *self._missed.pop(role, [])])
            self.random.shuffle(deck)
        return deck.pop()

    def missed(self, role: str, fate: Fate) -> None:
        """Deal an unreached fate again, at its first pass."""
        self._missed.setdefault(role, []).append(replace(fate, passes=1))

    def _new(self, role: str) -> Iterator[Fate]:
        uniform = self.random.uniform
        points = failpoints.OF[role]
        for name, most in points.items():
            yield Fate(name, self.random.randint(1, most), kill=uniform(*REPRIEVE))
        outside = len(points) // 4
        for _ in range(outside):
            yield Fate(OUTSIDE, kill=uniform(0.0, 2.0))
        if role == "worker":
            for name, most in failpoints.OF_LEAVER.items():
                yield Fate(name, self.random.randint(1, most), uniform(0.3, 1.5), kill=10.0)
            yield Fate("told to stop", terminate=uniform(0.0, 1.5), kill=15.0)
            for _ in range(3):
                yield Fate("paused", pause=uniform(0.3, 1.5), kill=uniform(7.0, 8.0))


class Arena:
    def __init__(self, folder: Path, database: Database, plan: Plan) -> None:
        self.folder, self.database, self.plan = folder, database, plan
        self.random = Random(plan.seed)
        self.fates = Fates(self.random)
        self.tally = Tally()
        self.struck: Counter[str] = Counter()
        self.befell: Counter[str] = Counter()
        self.processes: list[Doomed] = []
        self.viewers: list[Viewer] = []
        self.seen = Seen()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        threads = ["--max-workers", str(plan.threads)]
        self.slots = [Slot("worker", ["run_tasks", *threads]) for _ in range(plan.workers)]
        self.slots.append(Slot("web", ["serve", str(self.port)]))
        if plan.kills:
            self.slots.append(Slot("cleanup", ["cleanup_tasks"]))
        self.doomed = bool(plan.kills)
        self.began = time.monotonic()

    def run(self) -> Tally:
        owner = User.objects.create_superuser("ada", password="ada")
        client = Client()
        client.force_login(owner)
        self.cookie = client.cookies["sessionid"].value
        plan = self.plan
        self.feeder = Feeder(plan.seed, owner, self.cookie, self.url, plan.backlog)
        with self._ended():
            for slot in self.slots:
                self._start(slot)
            eventually(self._web_answers, what="the web process answers")
            self.mine = self._watch()
            self.feeder.start()
            self._disturb_processes()
            self._settle()
        self._audit()
        return self.tally

    # The violent phase.

    def _disturb_processes(self) -> None:
        pause = threading.Event()
        look_at = time.monotonic() + 10
        trouble = threading.Thread(target=self._trouble, name="trouble", daemon=True)
        if self.plan.troubles:
            trouble.start()
        while not self._enough():
            for slot in self.slots:
                self._tend(slot)
            self._keep_viewers()
            if time.monotonic() > look_at:
                self._look()
                look_at = time.monotonic() + 10
            pause.wait(0.05)
        if self.plan.troubles:
            trouble.join(60)

    def _enough(self) -> bool:
        if self.feeder.errors or time.monotonic() > self.began + self.plan.seconds:
            return True
        reached = self.tally.kills >= self.plan.kills
        reached &= len(self.feeder.acknowledged) >= self.plan.tasks
        return reached and self.tally.troubles >= self.plan.troubles

    def _trouble(self) -> None:
        pause = threading.Event()
        while self.tally.troubles < self.plan.troubles:
            pause.wait(self.random.uniform(1.5, 4.0))
            try:
                self.befell[self.database.trouble(self.random)] += 1
            except Exception as error:  # noqa: BLE001 - reported, so that the run fails
                self.tally.fault("other_faults", f"no trouble could be made: {error!r}")
                self.tally.troubles = self.plan.troubles
            self.tally.troubles += 1

    def _start(self, slot: Slot) -> None:
        slot.fate = self.fates.draw(slot.role) if self.doomed else NEVER
        if slot.process is not None:
            slot.process.end()
        name = slot.fate.name if slot.fate.is_failpoint else "never"
        log = self.folder / f"{slot.role}-{len(self.processes)}.log"
        slot.process = Doomed(log, name, slot.fate.passes, *slot.command)
        slot.ready, slot.done, slot.paused = float("inf"), set(), 0.0
        self.processes.append(slot.process)

    def _tend(self, slot: Slot) -> None:
        process = slot.process
        assert process is not None
        code = process.code
        if code is not None:
            self._record_death(slot, process, code)
            self._start(slot)
            return
        if slot.ready == float("inf") and self._is_up(slot, process):
            slot.ready = time.monotonic()
        age = time.monotonic() - slot.ready
        fate = slot.fate
        if age >= fate.kill:
            process.send(signal.SIGKILL)
        elif age >= fate.terminate and "terminate" not in slot.done:
            slot.done.add("terminate")
            process.send(signal.SIGTERM)
        elif age >= fate.pause and "pause" not in slot.done:
            slot.done.add("pause")
            slot.paused = time.monotonic()
            process.send(signal.SIGSTOP)
            self.tally.pauses += 1
        elif slot.paused and time.monotonic() > slot.paused + self._past_lease:
            slot.paused = 0.0
            process.send(signal.SIGCONT)

    @property
    def _past_lease(self) -> float:
        conf = task_settings()
        return conf.lease_seconds + 3 * conf.heartbeat_seconds

    def _is_up(self, slot: Slot, process: Doomed) -> bool:
        match slot.role:
            case "worker":
                return " started: " in process.output
            case "web":
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", self.port)),
                ):
                    return True
                return False
            case _:
                return True

    def _record_death(self, slot: Slot, process: Doomed, code: int) -> None:
        deaths = {entry["pid"]: entry["name"] for entry in ledger.entries("deaths")}
        name = str(deaths.get(process.pid, OUTSIDE))  # type: ignore[call-overload]
        if slot.fate.is_failpoint and name == OUTSIDE:
            self.fates.missed(slot.role, slot.fate)
        if code == -signal.SIGKILL:
            self.tally.kills += 1
            self.struck[f"{slot.role} {name}"] += 1
        elif code and self.plan.troubles and (slot.role == "cleanup" or slot.ready == float("inf")):
            # It found the database down. The next one starts immediately.
            self.struck["could not start"] += 1
        elif (
            code == ExitCode.UNRELEASED
            and self.plan.troubles
            and slot.fate.terminate < float("inf")
        ):
            # It was asked to stop while the database took no writes. Others rescue its tasks.
            self.struck["worker unreleased"] += 1
        elif code or not (slot.role == "cleanup" or slot.fate.terminate < float("inf")):
            tail = process.output[-1500:]
            self.tally.fault(
                "other_faults", f"{process.log.name} ({slot.fate}) ended with {code}: {tail}"
            )

    def _keep_viewers(self) -> None:
        """Keep a number of viewers watching, each one task until its end."""
        watching = sum(not viewer.over for viewer in self.viewers)
        started = list(self.feeder.acknowledged.items())
        if watching < self.plan.viewers and started:
            key, task_id = started[-1]
            if key not in self.feeder.delayed and all(v.task_id != task_id for v in self.viewers):
                self._watch(task_id)

    def _watch(self, task_id: UUID | None = None) -> Viewer:
        path = f"/tasks/{task_id}/stream/" if task_id else "/tasks/stream/?mine=1"
        self.viewers.append(
            Viewer(self.url + path, self.cookie, self.random.randrange(10**9), task_id)
        )
        return self.viewers[-1]

    def _look(self) -> None:
        try:
            check_invariants(self.seen)
        except AssertionError as error:
            self.tally.fault("other_faults", f"invariant: {error}")
        except (DatabaseError, InterfaceError, psycopg.Error):
            # The database is disturbed; a later check follows. Closing a cursor raises psycopg's
            # own error.
            connection.close()

    # The calm phase.

    def _settle(self) -> None:
        """Let the remaining processes finish: all tasks must reach their end."""
        self.feeder.stop()
        self.doomed = False
        # The connection may be from before the last disturbance.
        connection.close()
        for slot in self.slots:
            assert slot.process is not None
            if self.plan.kills:
                slot.process.end()
            if slot.role != "cleanup" and slot.process.code is not None:
                self._start(slot)
        eventually(self._web_answers, what="the web process answers")
        with contextlib.suppress(AssertionError):
            # The audit reports what is left.
            eventually(self._all_over, within=60)
        for viewer in self.viewers:
            if viewer.task_id:
                viewer.join(PATIENCE)
        with contextlib.suppress(AssertionError):
            eventually(self._mine_complete, within=10)
        self.mine.leave()
        self.mine.join(PATIENCE)
        workers = [slot.process for slot in self.slots if slot.role == "worker"]
        for worker in workers:
            assert worker is not None
            worker.send(signal.SIGTERM)
        for worker in workers:
            assert worker is not None
            if (code := worker.wait(PATIENCE)) != 0:
                self.tally.fault("other_faults", f"{worker.log.name} ended with {code}")
        last = Doomed(self.folder / "cleanup-last.log", "never", 1, "cleanup_tasks")
        self.processes.append(last)
        if last.wait(PATIENCE) != 0:
            self.tally.fault("other_faults", f"cleanup_tasks failed: {last.output}")

    def _all_over(self) -> bool:
        now = Task.objects.unfinished().exclude(params__key__in=sorted(self.feeder.delayed))
        return not now.exists()

    def _mine_complete(self) -> bool:
        return not missed_by(self.mine, events_by_task())

    def _web_answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/login/", timeout=5, verify=False).status_code == 200
        return False

    @contextlib.contextmanager
    def _ended(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.feeder.stop()
            for viewer in self.viewers:
                viewer.leave()
            for process in self.processes:
                process.end()
            for viewer in self.viewers:
                viewer.join(15)

    def _audit(self) -> None:
        tally = self.tally
        for error in self.feeder.errors:
            tally.fault("other_faults", f"the feeder failed: {error}")
        if tally.kills < self.plan.kills or len(self.feeder.acknowledged) < self.plan.tasks:
            tally.fault("other_faults", f"not done within {self.plan.seconds:g} s")
        if self.plan.kills >= EXHAUSTIVE and (spared := failpoints.ALL - self.struck.keys()):
            tally.fault("other_faults", f"nobody died at {', '.join(sorted(spared))}")
        self._look()
        audit_tasks(tally, self.feeder, calm=self.plan.calm)
        audit_rescues(tally, wrong=not self.plan.kills)
        audit_viewers(tally, self.viewers)
        audit_old(tally, self.feeder.grown_old)
        for process in self.processes:
            output = process.output
            tally.stale_writes_refused += output.count(STALE)
            for alarm in ALARMS:
                # A request during an outage of the database may fail.
                if alarm in output and not (self.plan.troubles and alarm == ASGI_FAILED):
                    where = output.index(alarm)
                    words = output[max(where - 500, 0) : where + 1500]
                    tally.fault("other_faults", f"{process.log.name} says {words}")
