"""Viewers that reconnect whenever they are cut off, as browsers do, and record all they see."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from tasks_app.states import FACTS, TERMINAL_EVENTS, EventType

PAUSE_SECONDS = (0.05, 0.4)


@dataclass
class Saw:
    """The events of one task that a viewer saw."""

    facts: list[tuple[int, str]] = field(default_factory=list)
    #: The runs whose progress it saw, and the newest value of each.
    progress: dict[str, float] = field(default_factory=dict)
    running: str = ""
    #: Times that progress went back, within a run or from one run to an earlier one.
    back: int = 0
    #: Everything in order, to investigate a fault: connection, event, run, progress.
    trail: list[tuple[int, str, str, float | None]] = field(default_factory=list)

    def report(self, run: str, value: float) -> None:
        if not run:
            return
        if run != self.running and run in self.progress:
            self.back += 1
        if value < self.progress.get(run, 0.0):
            self.back += 1
        self.running, self.progress[run] = run, value

    @property
    def ids(self) -> list[int]:
        return [number for number, _ in self.facts]

    @property
    def doubled(self) -> int:
        return len(self.facts) - len(set(self.ids))

    @property
    def out_of_order(self) -> int:
        once = list(dict.fromkeys(self.ids))
        pairs = itertools.pairwise(once)
        late = sum(kind in TERMINAL_EVENTS for _, kind in self.facts[:-1])
        return sum(before > after for before, after in pairs) + late + self.back

    @property
    def terminal(self) -> int:
        return sum(kind in TERMINAL_EVENTS for _, kind in self.facts)


class Viewer(threading.Thread):
    """Follows a stream until its final end: the server answered 204, or `leave` was called."""

    def __init__(self, url: str, cookie: str, seed: int, task_id: UUID | None = None) -> None:
        super().__init__(name=f"viewer of {task_id or 'all of mine'}", daemon=True)
        self.url, self.cookie, self.task_id = url, cookie, task_id
        self.saw: dict[UUID, Saw] = {}
        #: The first id. The opening state covers everything up to it.
        self.since = ""
        self.last_id = ""
        self.connections = 0
        self.refused: list[str] = []
        self.over = False
        self._left = threading.Event()
        self._random = Random(seed)
        self.start()

    def leave(self) -> None:
        """Disconnect at the next keep-alive."""
        self._left.set()

    def run(self) -> None:
        with httpx.Client(
            cookies={"sessionid": self.cookie},
            timeout=httpx.Timeout(5, read=10),
            verify=False,
        ) as client:
            while not (self.over or self._left.is_set()):
                # Reconnect after a cut.
                with contextlib.suppress(httpx.HTTPError, OSError):
                    self._follow(client)
                self._left.wait(self._random.uniform(*PAUSE_SECONDS))

    def _follow(self, client: httpx.Client) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        if not headers:
            # A new viewer gets the state and what follows it.
            self.since, self.saw = "", {}
        with connect_sse(client, "GET", self.url, headers=headers) as source:
            status = source.response.status_code
            if status == 204:
                self.over = True
                return
            if status != 200:
                self.refused.append(f"{status} {source.response.read()[:200]!r}")
                return
            self.connections += 1
            for event in source.iter_sse():
                self._take(event)
                if self._left.is_set():
                    return

    def _take(self, event: ServerSentEvent) -> None:
        self.last_id = event.id or self.last_id
        self.since = self.since or event.id
        if event.event not in EventType:
            return
        message = json.loads(event.data)
        data: dict[str, Any] = message["data"]
        saw = self.saw.setdefault(UUID(message["task_id"]), Saw())
        if event.event in FACTS:
            saw.facts.append((int(event.id.split("@")[0]), event.event))
            data = data.get("progress", {})
        elif event.event == EventType.STATUS:
            data = data["progress"]
        saw.trail.append((self.connections, event.event, data.get("text", ""), data.get("value")))
        if data.get("value") is not None:
            saw.report(data["text"], data["value"])
