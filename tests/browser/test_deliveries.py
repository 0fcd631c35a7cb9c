"""In any order of states and facts, and with any cuts of streams, each fact comes once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tasks_app.live.channels import id_of
from tasks_app.models import Task

from .pages import look, runs
from .scripted import Serve, Site, task

pytestmark = [pytest.mark.browser, pytest.mark.once]

#: Streams and answers under the test's control, and what the page reports of them.
FAKES = """
window.streams = [];
window.EventSource = class extends EventTarget {
  static CLOSED = 2;
  readyState = 1;
  last = "";
  constructor(url) {
    super();
    this.url = String(url);
    streams.push(this);
  }
  close() {
    this.readyState = 2;
  }
};
window.states = {};
window.fetch = async () =>
  new Response(JSON.stringify({ tasks: Object.values(states), time: new Date().toISOString() }));
window.reported = {};
window.ends = {};
addEventListener("task-progress:event", ({ detail: { taskId, eventId } }) => {
  (reported[taskId] ??= []).push(eventId);
});
addEventListener("task-progress:end", ({ detail: { taskId, status } }) => {
  (ends[taskId] ??= []).push(status);
});
"""
SEND = """([messages]) => {
  const stream = streams.at(-1);
  for (const { type, id, data } of messages) {
    if (stream.readyState === 2) return;
    if (id) stream.last = id;
    stream.dispatchEvent(new MessageEvent(type, { data, lastEventId: stream.last }));
  }
}"""
ANSWER = "states => { window.states = states; }"
#: The browser's report that it reconnects, or that it does not.
BREAK = """(closed) => {
  const stream = streams.at(-1);
  if (closed) stream.readyState = 2;
  stream.dispatchEvent(new Event("error"));
}"""
OPEN = """() => streams.filter(({ readyState }) => readyState !== 2)
  .map((stream) => [streams.indexOf(stream), stream.url, stream.last])"""
SHOWN = """() => [...document.querySelectorAll("task-progress")].map((bar) => ({
  id: bar.getAttribute("task-id"),
  status: bar.getAttribute("status"),
  lines: [...bar.querySelectorAll("[data-part=log] li")].map((line) => line.textContent),
  kept: Number(bar.querySelector("[data-part=log]").dataset.lines),
  reported: reported[bar.getAttribute("task-id")] ?? [],
  ends: ends[bar.getAttribute("task-id")] ?? [],
}))"""

_ids = itertools.count(1_000)


@dataclass
class History:
    """A task, and what has happened to it since it was put on the page."""

    row: Task
    ahead: list[str]
    facts: list[dict[str, Any]] = field(default_factory=list)

    def goes_on(self) -> None:
        row, kind, number = self.row, self.ahead.pop(0), next(_ids)
        now = datetime.now(UTC) + timedelta(milliseconds=number)
        data: dict[str, Any] = {}
        match kind:
            case "task_started":
                row.status, row.started_at, row.attempt = "running", now, row.attempt + 1
                data = {"attempt": row.attempt, "max_attempts": row.max_attempts, "worker": "w"}
            case "task_log":
                data = {"level": "info", "message": f"line {number}"}
            case "task_retry_scheduled":
                row.status, row.started_at, row.run_after = "pending", None, now
                error = {"type": "E", "message": "m"}
                data = {"attempt": row.attempt, "run_after": now.isoformat(), "error": error}
            case "task_completed":
                row.status, row.finished_at, row.result = "completed", now, 7
                data = {"result": 7, "progress": {"value": 1.0, "text": ""}}
        self.facts.append(self.message(kind, data, now, str(number)))

    def message(self, kind: str, data: Any, at: datetime, number: str = "") -> dict[str, Any]:
        text = {"task_id": str(self.row.pk), "timestamp": at.isoformat(), "data": data}
        return {"type": kind, "id": number, "data": json.dumps(text)}

    def state(self) -> dict[str, Any]:
        info: dict[str, Any] = self.row.info().model_dump(mode="json")
        return info

    def status(self) -> dict[str, Any]:
        return self.message("task_status", self.state(), datetime.now(UTC))


class Server:
    """Sends what a real server would: states, then the facts since a cursor, then new events."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page, self.site = page, site
        self.histories: dict[str, History] = {}
        self.waiting: list[dict[str, Any]] = []  # messages to send
        self.serving: tuple[int, bool] | None = None  # the stream in use
        self.asked: set[str] = set()

    def add(self, lines: int, again: bool, late: int = 0) -> None:
        """Put the card of a waiting task on the page, some ids after it was rendered."""
        run = ["task_started", *["task_log"] * lines]
        ahead = [*run, *(["task_retry_scheduled", *run] if again else []), "task_completed"]
        row = task(status="pending", max_attempts=2)
        self.histories[str(row.pk)] = History(row, ahead)
        self.site.rows = {str(row.pk): row}
        self.site.since = str(next(_ids) - late)
        html = self.site.render("{% task_progress tasks.0 form='card' %}")
        self.page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", html)
        self.page.evaluate(ANSWER, self.states())

    def happens(self, which: int) -> None:
        going = [each for each in self.histories.values() if each.ahead]
        if not going:
            return
        history = going[which % len(going)]
        history.goes_on()
        self.page.evaluate(ANSWER, self.states())
        if str(history.row.pk) in self.asked:
            self.waiting.append(history.facts[-1])

    def states(self) -> dict[str, Any]:
        return {pk: history.state() for pk, history in self.histories.items()}

    def accept(self) -> None:
        """Open what the page requests, if it is not open already."""
        streams = self.page.evaluate(OPEN)
        assert len(streams) <= 1
        if not streams:
            self.serving, self.asked, self.waiting = None, set(), []
            return
        [[number, url, last]] = streams
        if self.serving == number:
            return
        self.serving = number
        query = parse_qs(urlsplit(url).query)
        self.asked = {str(id_of(text)) for text in query["task"]}
        cursors = [last] if last else query.get("lastEventId", [])
        since = min(map(int, cursors)) if cursors else next(_ids)
        asked = [history for pk, history in self.histories.items() if pk in self.asked]
        facts = [fact for history in asked for fact in history.facts if int(fact["id"]) > since]
        self.waiting = [history.status() for history in asked]
        self.waiting += sorted(facts, key=lambda fact: int(fact["id"]))

    def send(self, most: int) -> None:
        self.accept()
        messages, self.waiting = self.waiting[:most], self.waiting[most:]
        if self.serving is not None and messages:
            self.page.evaluate(SEND, [messages])

    def breaks(self, *, closed: bool) -> None:
        self.accept()
        if self.serving is not None:
            self.page.evaluate(BREAK, closed)
            self.serving = None

    def ends(self) -> None:
        """Let all tasks end, and let the page see it."""
        look(self.page)
        while any(history.ahead for history in self.histories.values()):
            self.happens(0)
        for _ in range(4):
            self.send(1_000)
            self.page.clock.run_for(8_000)


STEPS = st.one_of(
    st.tuples(st.just("happens"), st.tuples(st.integers(0, 2), st.integers(1, 6))),
    st.tuples(st.just("send"), st.integers(1, 4)),
    st.tuples(st.just("cut"), st.booleans()),
    st.tuples(st.just("look"), st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([30, 1_000, 6_000])),
    st.tuples(st.just("add"), st.sampled_from([0, 50])),
)


@pytest.fixture
def server(page: Page, serve: Serve) -> Callable[[], Server]:
    site = serve()
    site.template = "{% task_assets %}"
    page.clock.install()
    page.add_init_script(FAKES)

    def begin() -> Server:
        page.goto(f"{site.url}/page/")
        runs(page)
        return Server(page, site)

    return begin


@settings(
    max_examples=8,
    derandomize=True,
    database=None,
    # An example takes half a second, so examples are not shrunk.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    cards=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=2),
    steps=st.lists(STEPS, min_size=5, max_size=25),
)
# A card rendered earlier than the others makes their facts come again.
@example(
    cards=[(3, False)],
    steps=[("happens", (0, 4)), ("send", 4), ("send", 4), ("add", 50), ("pass", 30), ("send", 9)],
)
def test_each_fact_comes_once_and_the_end_is_right(
    server: Callable[[], Server], cards: list[tuple[int, bool]], steps: list[tuple[str, Any]]
) -> None:
    serving = server()
    page = serving.page
    for number, again in cards:
        serving.add(number, again)
    page.clock.run_for(30)
    # If no stream ever opens, the page does not wait for facts.
    serving.send(1)
    for step, value in steps:
        match step:
            case "happens":
                which, times = value
                for _ in range(times):
                    serving.happens(which)
            case "send":
                serving.send(value)
            case "cut":
                serving.breaks(closed=value)
            case "look":
                look(page, away=not value)
            case "pass":
                page.clock.run_for(value)
            case "add":
                serving.add(1, again=False, late=value)
                page.clock.run_for(30)
    serving.ends()
    for shown in page.evaluate(SHOWN):
        facts = serving.histories[shown["id"]].facts
        assert shown["reported"] == [int(fact["id"]) for fact in facts]
        logged = [json.loads(fact["data"]) for fact in facts if fact["type"] == "task_log"]
        lines = [line["data"]["message"] for line in logged]
        assert shown["lines"] == lines[-shown["kept"] :]
        assert (shown["status"], shown["ends"]) == ("completed", ["completed"])
