"""A viewer that is cut off at any point and resumes misses nothing and gets nothing twice."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import User
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks_app.live.channels import EventFilter, owner_channel, task_channel
from tasks_app.live.cursor import Cursor
from tasks_app.live.view import View
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import FACTS, EventType
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, claim_of
from tasks_app.tasks.progress import LogLine
from tests.live.watching import Seen, parsed
from tests.rows import BROKEN, claimed, worker

pytestmark = pytest.mark.django_db(transaction=True)


class Running:
    """A task that runs attempt after attempt, and whose progress grows through all of them."""

    def __init__(self, owner: User) -> None:
        self.task, self.claim = claimed(owner=owner, max_attempts=99)

    def act(self, action: str, step: int) -> None:
        match action:
            case "log":
                lifecycle.log({self.claim: [LogLine("info", str(step))] * 2})
            case "report":
                lifecycle.report({self.claim: TaskProgressUpdate(text="", value=step / 100)})
            case "release":
                lifecycle.release([self.claim])
                self.claim = self._again(step)
            case "retry":
                lifecycle.retry({self.claim: BROKEN})
                self.claim = self._again(step)

    def _again(self, step: int) -> Claim:
        Task.objects.filter(pk=self.task.pk).update(run_after=self.task.created_at)
        [taken] = lifecycle.claim(worker(), 1)
        claim = claim_of(taken)
        lifecycle.report({claim: TaskProgressUpdate(text="", value=step / 100)})
        return claim


class Client:
    """Reads one stream after another, each from the last id that it received."""

    def __init__(self, channels: list[str], event_filter: EventFilter) -> None:
        self._asked = (channels, event_filter)
        self._last = Cursor.now("default").beginning()
        self._view: View | None = None
        self.seen: list[Seen] = []

    def read(self, cut: float | None = None) -> None:
        """Read what there is, or the first part of it, after which the connection breaks."""
        until = Cursor.now("default")
        if self._view is None:
            self._view = View(*self._asked)
            if not self._view.begin(self._last, until):
                self._view = None
                return
        sent = b"".join(self._view.catch_up(until, progress=True))
        if cut is not None:
            # A client drops an event that was cut.
            sent = sent[: round(cut * len(sent))].rpartition(b"\n\n")[0]
            self._view = None
        for event in parsed(sent):
            self.seen.append(event)
            if event.id:
                self._last = Cursor.parse(event.id)


@settings(max_examples=10)
@given(
    kinds=st.frozensets(st.sampled_from(EventType.values)),
    by_owner=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(["log", "report", "release", "retry"]),
            st.none() | st.floats(0, 1),
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_viewer_cut_off_at_any_point(
    kinds: frozenset[str], by_owner: bool, steps: list[tuple[int, str, float | None]]
) -> None:
    Task.objects.all().delete()  # A failed example leaves its tasks.
    owner = User.objects.create_user(uuid.uuid4().hex)
    both = [Running(owner), Running(owner)]
    pks = [running.task.pk for running in both]
    channels = [owner_channel(owner.pk)] if by_owner else [task_channel(pk) for pk in pks]
    client = Client(channels, EventFilter(kinds))
    for step, (which, action, cut) in enumerate(steps, start=1):
        both[which].act(action, step)
        client.read(cut)
    client.read(0.5)
    lifecycle.complete({running.claim: None for running in both})
    client.read(0.5)
    client.read()

    facts = [event for event in client.seen if event.type in FACTS]
    assert {event.type for event in client.seen} <= kinds
    for pk in pks:
        received = [
            int(fact.id.split("@")[0]) for fact in facts if fact.message["task_id"] == f"{pk}"
        ]
        stored = TaskEvent.objects.filter(task=pk, event_type__in=kinds & FACTS).order_by("id")
        assert received == list(stored.values_list("pk", flat=True))
        reports = [
            event.data["value"]
            for event in client.seen
            if event.type == EventType.PROGRESS and event.message["task_id"] == f"{pk}"
        ]
        values = [value for value in reports if value is not None]
        assert values == sorted(values)
