"""The table of legal moves is complete, and every other list of statuses or events matches it."""

from __future__ import annotations

import pytest

from tasks_app.models import Task, TaskEvent
from tasks_app.states import (
    FACTS,
    LEGAL,
    TERMINAL,
    TERMINAL_EVENTS,
    UNFINISHED,
    EventType,
    Status,
    Verb,
)
from tasks_app.store import lifecycle

#: Verbs whose lifecycle function has another name. request_cancel covers both.
NAMED = {Verb.WITHDRAW: "request_cancel"}


def test_every_verb_has_a_row() -> None:
    assert set(LEGAL) == set(Verb)


@pytest.mark.parametrize("verb", Verb)
def test_every_verb_has_a_function(verb: Verb) -> None:
    function = getattr(lifecycle, NAMED.get(verb, verb.value))
    assert function.__module__ == lifecycle.__name__


def test_nothing_leaves_a_terminal_status() -> None:
    assert {Status.COMPLETED, Status.FAILED, Status.CANCELLED} == TERMINAL
    assert {Status.PENDING, Status.RUNNING} == UNFINISHED
    assert not any(move.sources & TERMINAL for move in LEGAL.values())


@pytest.mark.parametrize("status", Status)
def test_status_is_terminal(status: Status) -> None:
    assert status.is_terminal is (status in {Status.COMPLETED, Status.FAILED, Status.CANCELLED})


def test_every_status_is_reachable() -> None:
    reached = {move.target for move in LEGAL.values() if not move.sources}
    while more := {
        move.target
        for move in LEGAL.values()
        if move.sources & reached and move.target not in reached
    }:
        reached |= more
    assert reached == set(Status)


def test_every_unfinished_status_can_end() -> None:
    ending = {
        source for move in LEGAL.values() if move.target in TERMINAL for source in move.sources
    }
    assert ending == UNFINISHED


def test_each_terminal_event_belongs_to_one_terminal_status() -> None:
    pairs = {(move.event, move.target) for move in LEGAL.values() if move.target in TERMINAL}
    assert pairs == {
        (EventType.COMPLETED, Status.COMPLETED),
        (EventType.FAILED, Status.FAILED),
        (EventType.CANCELLED, Status.CANCELLED),
    }
    assert {event for event, _ in pairs} == TERMINAL_EVENTS
    other_events = {move.event for move in LEGAL.values() if move.target not in TERMINAL}
    assert not other_events & TERMINAL_EVENTS


@pytest.mark.parametrize("event", EventType)
def test_event_is_terminal(event: EventType) -> None:
    assert event.is_terminal is (event in TERMINAL_EVENTS)


def test_every_fact_has_a_verb_and_no_state_is_a_fact() -> None:
    events = {move.event for move in LEGAL.values() if move.event}
    assert events - {EventType.PROGRESS} == FACTS
    assert set(EventType) - FACTS == {EventType.STATUS, EventType.PROGRESS}


@pytest.mark.parametrize("verb", Verb)
def test_verbs_that_move_a_running_task_are_fenced(verb: Verb) -> None:
    """Except the cancel request, which only sets a timestamp."""
    from_running = Status.RUNNING in LEGAL[verb].sources
    assert LEGAL[verb].fenced is (from_running and verb is not Verb.REQUEST_CANCEL)


def test_model_choices_match_the_table() -> None:
    assert Task._meta.get_field("status").choices == Status.choices
    assert TaskEvent._meta.get_field("event_type").choices == EventType.choices
    longest = max(len(value) for value in Status.values)
    assert Task._meta.get_field("status").max_length >= longest
    longest = max(len(value) for value in EventType.values)
    assert TaskEvent._meta.get_field("event_type").max_length >= longest


def test_constraints_are_made_from_the_table() -> None:
    """Each list of statuses in a constraint or index is one of the table's."""
    lists = [
        frozenset(value)
        for model in (Task, TaskEvent)
        for item in [*model._meta.constraints, *model._meta.indexes]
        if item.condition is not None
        for field, value in _leaves(item.condition)
        if field in ("status__in", "event_type__in")
    ]
    assert frozenset(Status.values) in lists
    table = [frozenset(Status.values), TERMINAL, UNFINISHED, FACTS, TERMINAL_EVENTS]
    assert all(found in table for found in lists)


def _leaves(q: object) -> list[tuple[str, object]]:
    if isinstance(q, tuple):
        return [q]
    return [leaf for child in q.children for leaf in _leaves(child)]  # type: ignore[attr-defined]
