"""The writes of `lifecycle`: rows locked by their tokens, and facts with them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple, cast

from django.db import connections, router
from pydantic_core import to_jsonable_python

from tasks_app.models import Task, TaskEvent, aware
from tasks_app.notify import announce
from tasks_app.states import LEGAL, Move, Verb
from tasks_app.store.claims import Claim
from tasks_app.store.clock import database_now

#: The columns of a task without a claim.
UNCLAIMED: dict[str, Any] = {"fencing_token": None, "lease_expires_at": None}


class Row(NamedTuple):
    """The columns that a verb needs of a locked task."""

    attempt: int
    max_attempts: int
    cancel_requested_at: datetime | None
    progress: float | None
    progress_text: str


def alias() -> str:
    """Return the alias of the database that tasks are written to."""
    return router.db_for_write(Task)


#: A worker waits this long for a lock. Then it looks after its threads again.
LOCK_MILLISECONDS = 1000


#: SQLSTATE of lock_timeout, which `begin` sets, and of a deadlock that PostgreSQL broke.
LOCK_TIMEOUT, DEADLOCK = "55P03", "40P01"


def sqlstate(error: Exception) -> str:
    """Return PostgreSQL's SQLSTATE of an error; an empty string for other databases."""
    return str(getattr(error.__cause__, "sqlstate", None) or "")


def begin(using: str, wait: int = LOCK_MILLISECONDS) -> datetime:
    """Return the database's time, and limit how long the current transaction waits for a lock.

    A waiting worker enforces no timeout and handles no signal, and one of its own tasks may hold
    the lock. The limit applies to this transaction only, so it also works behind a pooler and
    affects no other session. On SQLite, a transaction waits when it begins: see the worker's
    `connect`.
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
    """Lock the rows of claims until the transaction ends, except rows that others hold.

    Return the claims whose rows are held by another session. Leave those alone for now: the session
    may hold them for long, and the other claims must not wait for it. All rows are locked in one
    order, so that two callers never wait for each other. A database with one lock for everything,
    such as SQLite, returns none.
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
    # A claim whose row has another token by now is stale, and not held.
    held = set(rows.exclude(pk__in=reserved).values_list("pk", flat=True))
    return {claim for claim in claims if claim.task_id in held}


def hold(verb: Verb, claims: Iterable[Claim]) -> dict[Claim, Row]:
    """Lock the rows of the claims that are valid for this verb, until the transaction ends."""
    move = LEGAL[verb]
    claims = set(claims)
    rows = (
        Task.primary.filter(
            pk__in=[claim.task_id for claim in claims],
            fencing_token__in={claim.token for claim in claims},
            status__in=sorted(move.sources),
        )
        # Use the same order everywhere, so that two callers never wait for each other.
        .order_by("pk")
        # Not the key: the site's rows that refer to a task can still be inserted.
        .select_for_update(of=("self",), no_key=True)
        .values_list("pk", "fencing_token", *Row._fields)
    )
    held = {Claim(pk, token): Row(*columns) for pk, token, *columns in rows}
    return {claim: row for claim, row in held.items() if claim in claims}


def update(claims: Collection[Claim], **fields: Any) -> None:
    """Update the rows that still have the claims' tokens."""
    if claims:
        Task.primary.filter(
            pk__in=[claim.task_id for claim in claims],
            fencing_token__in={claim.token for claim in claims},
        ).update(**fields)


def record(move: Move, facts: Iterable[tuple[uuid.UUID, dict[str, Any]]], now: datetime) -> None:
    """Add a verb's event to the history of each task."""
    assert move.event  # noqa: S101 - only called for moves with an event
    events = TaskEvent.primary.bulk_create(
        TaskEvent(task_id=task_id, event_type=move.event, timestamp=now, data=data)
        for task_id, data in facts
    )
    if events:  # Else a worker that found nothing to claim would wake itself.
        announce(alias())


def waiting(run_after: datetime) -> dict[str, Any]:
    """Return the event data of a task that waits."""
    return {"run_after": to_jsonable_python(aware(run_after))}


def requester(by: str) -> dict[str, Any]:
    """Return the event data that names who asked for something."""
    return {"by": by} if by else {}
