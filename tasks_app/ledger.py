"""How `lifecycle` writes: rows held by their tokens, and facts beside them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple, cast

from django.db import connections, router
from pydantic_core import to_jsonable_python

from tasks_app.changes import announce
from tasks_app.claims import Claim
from tasks_app.clock import database_now
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.states import LEGAL, Move, Verb

#: What the row of a task has that nobody holds.
UNCLAIMED: dict[str, Any] = {"fencing_token": None, "lease_expires_at": None}


class Row(NamedTuple):
    """What a verb needs to know of a task that is held."""

    attempt: int
    max_attempts: int
    cancel_requested_at: datetime | None
    progress: float | None
    progress_text: str


def alias() -> str:
    """The database that tasks are written to."""
    return router.db_for_write(Task)


#: How long a worker waits in line for a lock before it looks after its hands again.
LOCK_MILLISECONDS = 1000


#: What PostgreSQL calls a wait that was cut short by `begin`, and one that it ended itself.
LOCK_TIMEOUT, DEADLOCK = "55P03", "40P01"


def sqlstate(error: Exception) -> str:
    """Return PostgreSQL's name for an error of the database; nothing for those of others."""
    return str(getattr(error.__cause__, "sqlstate", None) or "")


def begin(using: str, wait: int = LOCK_MILLISECONDS) -> datetime:
    """Return the database's time, and let the running transaction wait for locks no longer.

    While it waits, a worker enforces no timeout and hears no signal; and it may be one of its own
    tasks that holds the lock. Good for this transaction alone, so it holds behind a pooler and is
    nobody else's. SQLite waits where a transaction begins: see the worker's `connect`.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return database_now(using)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT statement_timestamp(), set_config('lock_timeout', %s, true)", [str(wait)]
        )
        return cast(datetime, cursor.fetchone()[0])


def reserve(claims: Collection[Claim]) -> set[Claim]:
    """Lock the rows of claims until the transaction ends, but for those that others hold just now.

    Returns the claims that are to be left alone for now: somebody holds their rows, who may do so
    for long, and the others must not wait for that. In one order, so that two who reserve never
    wait for each other. Where there is one lock for all, as on SQLite, nothing is left.
    """
    using = alias()
    if not claims or not connections[using].features.has_select_for_update_skip_locked:
        return set()
    rows = Task.primary.filter(
        pk__in=[claim.task_id for claim in claims],
        fencing_token__in={claim.token for claim in claims},
    ).order_by("pk")
    locked = rows.select_for_update(of=("self",), no_key=True, skip_locked=True)
    reserved = set(locked.values_list("pk", flat=True))
    if len(reserved) == len(claims):
        return set()
    # What nobody has any more is void, and not held.
    held = set(rows.exclude(pk__in=reserved).values_list("pk", flat=True))
    return {claim for claim in claims if claim.task_id in held}


def hold(verb: Verb, claims: Iterable[Claim]) -> dict[Claim, Row]:
    """Lock the rows of those claims that are good for this verb, until the transaction ends."""
    move = LEGAL[verb]
    claims = set(claims)
    rows = (
        Task.primary.filter(
            pk__in=[claim.task_id for claim in claims],
            fencing_token__in={claim.token for claim in claims},
            status__in=sorted(move.sources),
        )
        # In one order everywhere, so that two who hold the same rows never wait for each other.
        .order_by("pk")
        # Rows of the site's that refer to a task may come meanwhile: its key does not change.
        .select_for_update(of=("self",), no_key=True)
        .values_list("pk", "fencing_token", *Row._fields)
    )
    held = {Claim(pk, token): Row(*columns) for pk, token, *columns in rows}
    return {claim: row for claim, row in held.items() if claim in claims}


def update(claims: Collection[Claim], **fields: Any) -> None:
    """Write fields of the rows that still bear the claims' tokens."""
    if claims:
        Task.primary.filter(
            pk__in=[claim.task_id for claim in claims],
            fencing_token__in={claim.token for claim in claims},
        ).update(**fields)


def record(move: Move, facts: Iterable[tuple[uuid.UUID, dict[str, Any]]], now: datetime) -> None:
    """Add what a verb tells of each task to its history."""
    assert move.event  # noqa: S101 - called for moves that tell something
    told = TaskEvent.primary.bulk_create(
        TaskEvent(task_id=task_id, event_type=move.event, timestamp=now, data=data)
        for task_id, data in facts
    )
    if told:  # A worker that found nothing to claim would else wake itself to look again.
        announce(alias())


def waiting(run_after: datetime) -> dict[str, Any]:
    """What the history says of a task that waits."""
    return {"run_after": to_jsonable_python(aware(run_after))}


def who(by: str) -> dict[str, Any]:
    """What the history says of whoever asked for something."""
    return {"by": by} if by else {}
