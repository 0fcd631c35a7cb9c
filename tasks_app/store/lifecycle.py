"""The only writer of a task's status: one verb for each transition of `states.LEGAL`.

Each verb changes the row and records its event in one transaction. Verbs for workers take claims. A
claim is stale if the row no longer has its token, because the task was rescued or finished in the
meantime. A verb writes nothing for stale claims and returns them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, QuerySet

from tasks_app.conf import task_settings
from tasks_app.exceptions import AlreadyRetried, DuplicateTask, IllegalTransition, TaskNotFound
from tasks_app.models import Task, Worker
from tasks_app.models.querysets import TaskQuerySet
from tasks_app.notify import announce
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import LEGAL, RETRIABLE, Status, Verb
from tasks_app.store.claims import Claim, Failure, claim_of, ready, worker_lost
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import UNCLAIMED, Row, alias, hold, record, requester, update, waiting
from tasks_app.tasks.backoff import backoff
from tasks_app.tasks.base import resolve
from tasks_app.tasks.progress import LogLine


def enqueue(tasks: Sequence[Task], data: Mapping[str, Any] | None = None) -> None:
    """Insert new tasks and their events. Tasks of one priority keep this order.

    Joins the caller's transaction: the tasks exist exactly if it commits. If an unfinished task has
    one of the unique keys, raises DuplicateTask and inserts none of the tasks; the caller's
    transaction can continue. `data` is added to the events.
    """
    move = LEGAL[Verb.ENQUEUE]
    using = alias()
    now = database_now(using)
    for position, task in enumerate(tasks):
        # One microsecond apart, so that tasks started together run in the given order.
        created = now + timedelta(microseconds=position)
        task.status = move.target
        task.created_at = created
        task.run_after = task.run_after or created
    keys = [task.unique_key for task in tasks if task.unique_key]
    for last_try in (False, True):
        try:
            with transaction.atomic(using=using):
                Task.primary.bulk_create(tasks)
                facts = [(task.pk, {**waiting(task.run_after), **(data or {})}) for task in tasks]
                record(move, facts, now)
        except IntegrityError as error:
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise DuplicateTask(twice) from error
            holder = _holder_of_key(keys)
            if holder is not None:
                raise DuplicateTask(str(holder.unique_key), holder.pk) from error
            if last_try or not keys:
                raise
            # The task that held the key has finished in between: try again.
        else:
            return


def enqueue_again(task_id: uuid.UUID, by: str = "") -> Task:
    """Enqueue a failed or cancelled task again, as a new row that names the old one.

    The old row and its history stay. If several callers ask at the same time, only one starts it.
    Raises TaskNotFound; IllegalTransition if the task has not failed or been cancelled;
    AlreadyRetried; UnknownTask if its class no longer exists, so that no worker could run it; and
    DuplicateTask if another task has its unique key by now.
    """
    # Importing may take long, and on SQLite a transaction keeps all others from writing.
    resolve(_retriable(Task.primary.all(), task_id).name)
    with transaction.atomic(using=alias()):
        task = _retriable(Task.primary.select_for_update(of=("self",), no_key=True), task_id)
        again = Task(retried_from=task, **{field: getattr(task, field) for field in Task.GIVEN})
        enqueue([again], {"retried_from": str(task_id)} | requester(by))
    return again


def _retriable(tasks: QuerySet[Task], task_id: uuid.UUID) -> Task:
    task = tasks.filter(pk=task_id).first()
    if task is None:
        raise TaskNotFound(task_id)
    if task.status not in RETRIABLE:
        raise IllegalTransition(task_id, Status(task.status), "retried")
    if again := Task.primary.filter(retried_from=task).first():
        raise AlreadyRetried(task_id, Status(task.status), again.pk)
    return task


def claim(worker: Worker, limit: int, *, now: datetime | None = None) -> list[Task]:
    """Take up to `limit` ready tasks for a worker, the most urgent first.

    If several workers ask at the same time, each task goes to one of them. The leases last
    TASK_LEASE_SECONDS from now, by the database's clock.
    """
    move = LEGAL[Verb.CLAIM]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        tasks = list(
            ready(now, worker.queues).select_for_update(skip_locked=True, no_key=True)[:limit]
        )
        if not tasks:
            return []
        token = uuid.uuid4()
        taken = {
            "status": move.target,
            "worker_id": worker.pk,
            "fencing_token": token,
            "lease_expires_at": now + timedelta(seconds=task_settings().lease_seconds),
            "started_at": now,
            "progress": None,
            "progress_text": "",
            "progress_at": None,
        }
        unclaimed = Task.primary.filter(
            pk__in=[task.pk for task in tasks], status__in=sorted(move.sources)
        )
        if unclaimed.update(attempt=F("attempt") + 1, **taken) != len(tasks):
            # Without row locks, another worker may have taken some in between. Keep only ours.
            tasks = list(Task.primary.filter(fencing_token=token))
        else:
            for task in tasks:
                task.attempt += 1
                for field, value in taken.items():
                    setattr(task, field, value)
        started = {"worker": str(worker)}
        record(
            move,
            [
                (task.pk, {"attempt": task.attempt, "max_attempts": task.max_attempts} | started)
                for task in tasks
            ],
            now,
        )
    return tasks


def renew(claims: Collection[Claim], *, now: datetime | None = None) -> list[Claim]:
    """Extend the leases of claims to TASK_LEASE_SECONDS from now. Return the stale claims."""
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held = hold(Verb.RENEW, claims)
        update(held, lease_expires_at=now + timedelta(seconds=task_settings().lease_seconds))
    return [claim for claim in claims if claim not in held]


def report(newest: Mapping[Claim, TaskProgressUpdate], now: datetime | None = None) -> list[Claim]:
    """Overwrite the progress of tasks with the newest. Return the stale claims.

    Progress is state, not history: its event is sent from the row and not stored.
    """
    move = LEGAL[Verb.REPORT]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        if not newest:
            return []
        announce(using)
        now = now or database_now(using)
        return [
            claim
            for claim, progress in newest.items()
            if not Task.primary.filter(
                pk=claim.task_id, fencing_token=claim.token, status__in=sorted(move.sources)
            ).update(progress=progress.value, progress_text=progress.text, progress_at=now)
        ]


def log(lines: Mapping[Claim, Sequence[LogLine]], *, now: datetime | None = None) -> list[Claim]:
    """Record lines that tasks wrote by `progress.log()`. Return the stale claims."""
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held = hold(Verb.LOG, lines)
        record(
            LEGAL[Verb.LOG],
            [(claim.task_id, line._asdict()) for claim in held for line in lines[claim]],
            now,
        )
    return [claim for claim in lines if claim not in held]


def complete(results: Mapping[Claim, Any], *, now: datetime | None = None) -> list[Claim]:
    """Complete claimed tasks with their results. Return the stale claims."""
    return _finish(
        Verb.COMPLETE,
        {
            claim: _Ending({"result": result, "progress": 1.0}, {"result": result})
            for claim, result in results.items()
        },
        now,
    )


def fail(failures: Mapping[Claim, Failure], *, now: datetime | None = None) -> list[Claim]:
    """Fail claimed tasks with the errors that stopped them. Return the stale claims."""
    return _finish(
        Verb.FAIL,
        {claim: _Ending(failure.fields(), failure.data()) for claim, failure in failures.items()},
        now,
    )


def cancel(stuck: Mapping[Claim, bool], *, now: datetime | None = None) -> list[Claim]:
    """Mark claimed tasks as cancelled, because they stopped on request. Return the stale claims.

    The mapping says of each claim whether it is stuck: the code did not stop, and its thread was
    abandoned.
    """
    return _finish(
        Verb.CANCEL,
        {
            claim: _Ending({"stuck": is_stuck}, {"stuck": True} if is_stuck else {})
            for claim, is_stuck in stuck.items()
        },
        now,
    )


def retry(failures: Mapping[Claim, Failure], *, now: datetime | None = None) -> list[Claim]:
    """Make tasks whose attempt failed wait for the next attempt. Return the stale claims.

    The failure sets the wait, or else `backoff` does. A task with a cancel request is cancelled
    instead; a task with no attempt left fails.
    """
    move = LEGAL[Verb.RETRY]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held, wanted = _hold_wanted(Verb.RETRY, failures, now)
        last = [claim for claim in wanted if held[claim].attempt >= held[claim].max_attempts]
        fail({claim: failures[claim] for claim in last}, now=now)
        for claim in wanted:
            if claim in last:
                continue
            row, failure = held[claim], failures[claim]
            wait = backoff(row.attempt) if failure.retry_after is None else failure.retry_after
            run_after = now + wait
            update([claim], **UNCLAIMED, status=move.target, run_after=run_after)
            data = {"attempt": row.attempt} | failure.data()
            record(move, [(claim.task_id, waiting(run_after) | data)], now)
    return [claim for claim in failures if claim not in held]


def release(claims: Collection[Claim], *, now: datetime | None = None) -> list[Claim]:
    """Return claimed tasks to the queue; the attempt does not count. Return the stale claims.

    They keep their place in the queue, and any worker may claim them immediately. A task with a
    cancel request is cancelled instead.
    """
    move = LEGAL[Verb.RELEASE]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held, wanted = _hold_wanted(Verb.RELEASE, claims, now)
        update(
            wanted,
            **UNCLAIMED,
            status=move.target,
            attempt=F("attempt") - 1,
            started_at=None,
        )
        record(move, [(claim.task_id, {"reason": "released"}) for claim in wanted], now)
    return [claim for claim in claims if claim not in held]


def rescue(limit: int = 100, *, now: datetime | None = None, silent: bool = False) -> list[Task]:
    """Take back tasks whose worker no longer renews their leases. Return them as they were before.

    They are retried as after a failure with WorkerLost: a task with a cancel request is cancelled,
    one with attempts left waits for the next, any other fails. A rescue waits one heartbeat after
    the lease expired, by the database's clock, so that a worker that could not write for a while
    can renew. A worker that sends heartbeats keeps its tasks: if it does not renew a lease, another
    session holds that row. Several processes can call this at the same time. `silent` clears the
    progress text, for a database that refuses it.
    """
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        lost = list(
            overdue(now)
            .select_related("worker")
            .select_for_update(skip_locked=True, of=("self",), no_key=True)
            .order_by("lease_expires_at")[:limit]
        )
        if silent:
            update([claim_of(task) for task in lost], progress_text="")
        retry({claim_of(task): worker_lost(task) for task in lost}, now=now)
    return lost


def overdue(now: datetime) -> TaskQuerySet:
    """Return running tasks of lost workers, whose leases expired more than a heartbeat ago.

    A worker is not lost if it sends heartbeats or renews the leases of other tasks: another session
    may hold the worker's own row.
    """
    late = now - timedelta(seconds=task_settings().heartbeat_seconds)
    beating = Worker.primary.beating(now).filter(pk=OuterRef("worker"))
    renewed = Task.primary.running().filter(worker=OuterRef("worker"), lease_expires_at__gte=now)
    lost = Task.primary.running().filter(lease_expires_at__lt=late)
    return lost.filter(~Exists(beating), ~Exists(renewed))


def request_cancel(task_id: uuid.UUID, by: str = "") -> Task:
    """Cancel a pending task, or ask a running one to stop. Return the task.

    Asking again changes nothing. Raises TaskNotFound, and IllegalTransition if the task has
    finished.
    """
    using = alias()
    with transaction.atomic(using=using):
        now = database_now(using)
        try:
            task = Task.primary.select_for_update(of=("self",), no_key=True).get(pk=task_id)
        except Task.DoesNotExist:
            raise TaskNotFound(task_id) from None
        if task.status in LEGAL[Verb.WITHDRAW].sources:
            move = LEGAL[Verb.WITHDRAW]
            task.status, task.finished_at, task.cancel_requested_at = move.target, now, now
        elif task.status in LEGAL[Verb.REQUEST_CANCEL].sources:
            move = LEGAL[Verb.REQUEST_CANCEL]
            if task.cancel_requested_at:
                return task
            task.cancel_requested_at = now
        else:
            raise IllegalTransition(task_id, Status(task.status), "cancelled")
        task.save(update_fields=["status", "finished_at", "cancel_requested_at"])
        record(move, [(task.pk, requester(by))], now)
    return task


@dataclass(frozen=True, slots=True)
class _Ending:
    fields: dict[str, Any]
    data: dict[str, Any]


def _finish(verb: Verb, endings: Mapping[Claim, _Ending], now: datetime | None) -> list[Claim]:
    if not endings:
        return []
    move = LEGAL[verb]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held = hold(verb, endings)
        # Tasks with equal columns share a statement: most of a batch have the same small result.
        alike: dict[str, list[Claim]] = {}
        for claim in held:
            alike.setdefault(json.dumps(endings[claim].fields, sort_keys=True), []).append(claim)
        for claims in alike.values():
            fields = endings[claims[0]].fields
            update(claims, **UNCLAIMED, status=move.target, finished_at=now, **fields)
        # Include the last progress: it is not sent from the row once the task has ended.
        last = {
            claim: {
                "text": row.progress_text,
                "value": endings[claim].fields.get("progress", row.progress),
            }
            for claim, row in held.items()
        }
        facts = [(claim.task_id, endings[claim].data | {"progress": last[claim]}) for claim in held]
        record(move, facts, now)
    return [claim for claim in endings if claim not in held]


def _hold_wanted(
    verb: Verb, claims: Iterable[Claim], now: datetime
) -> tuple[dict[Claim, Row], list[Claim]]:
    """Lock claims of tasks that will wait again. End those with a cancel request."""
    held = hold(verb, claims)
    wanted = [claim for claim, row in held.items() if not row.cancel_requested_at]
    cancel(dict.fromkeys(held.keys() - set(wanted), False), now=now)
    return held, wanted


def _holder_of_key(keys: Collection[str]) -> Task | None:
    return Task.primary.unfinished().filter(unique_key__in=keys).order_by().first()
