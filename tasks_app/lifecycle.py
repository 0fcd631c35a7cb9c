"""The only writer of a task's status: one verb for each transition of `states.LEGAL`.

Each verb changes the row and records its event in one transaction. Verbs that a worker calls take
claims; a claim whose token no longer stands in the row, because the task was rescued, cancelled or
finished meanwhile, is void: nothing is written for it, and the verb returns it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef

from tasks_app.backoff import backoff
from tasks_app.base import resolve
from tasks_app.changes import announce
from tasks_app.claims import Claim, Failure, claim_of, ready, worker_lost
from tasks_app.clock import database_now
from tasks_app.conf import task_settings
from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IllegalTransition,
    TaskNotFound,
)
from tasks_app.ledger import UNCLAIMED, Row, alias, hold, record, update, waiting, who
from tasks_app.models import Task, Worker
from tasks_app.progress import LogLine
from tasks_app.querysets import TaskQuerySet
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import LEGAL, RETRIABLE, Status, Verb


def enqueue(tasks: Sequence[Task], told: Mapping[str, Any] | None = None) -> None:
    """Insert new tasks, in this order within a priority, and tell that they wait.

    Takes part in the caller's transaction: the tasks exist exactly if it commits. Writes none of
    them and raises DuplicateTask if an unfinished task holds one of the unique keys; the caller's
    transaction can go on.
    """
    move = LEGAL[Verb.ENQUEUE]
    using = alias()
    now = database_now(using)
    for position, task in enumerate(tasks):
        # A microsecond apart, so that tasks started together run in the order they were given.
        created = now + timedelta(microseconds=position)
        task.status = move.target
        task.created_at = created
        task.run_after = task.run_after or created
    keys = [task.unique_key for task in tasks if task.unique_key]
    for last_try in (False, True):
        try:
            with transaction.atomic(using=using):
                Task.primary.bulk_create(tasks)
                facts = [(task.pk, {**waiting(task.run_after), **(told or {})}) for task in tasks]
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
            # Who held the key ended just now.
        else:
            return


def enqueue_again(task_id: uuid.UUID, by: str = "") -> Task:
    """Enqueue a failed or cancelled task anew: a row of its own, which names the one it repeats.

    The finished row stays as it is, with its history. Of any number who ask at once, one starts it.
    Raises TaskNotFound; IllegalTransition where the task has not failed or been cancelled;
    AlreadyRetried; UnknownTask where its class no longer exists, so that no worker could run it;
    and DuplicateTask where another task took over its unique key.
    """
    using = alias()
    with transaction.atomic(using=using):
        try:
            task = Task.primary.select_for_update(of=("self",), no_key=True).get(pk=task_id)
        except Task.DoesNotExist:
            raise TaskNotFound(task_id) from None
        if task.status not in RETRIABLE:
            raise IllegalTransition(task_id, Status(task.status), "retried")
        if again := Task.primary.filter(retried_from=task).first():
            raise AlreadyRetried(task_id, Status(task.status), again.pk)
        resolve(task.name)
        again = Task(retried_from=task, **{field: getattr(task, field) for field in Task.GIVEN})
        enqueue([again], {"retried_from": str(task_id)} | who(by))
    return again


def claim(worker: Worker, limit: int, *, now: datetime | None = None) -> list[Task]:
    """Take up to `limit` waiting tasks for a worker, the most urgent first.

    Of any number of workers that ask at once, each task goes to one. The claims hold until
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
        }
        unclaimed = Task.primary.filter(
            pk__in=[task.pk for task in tasks], status__in=sorted(move.sources)
        )
        if unclaimed.update(attempt=F("attempt") + 1, **taken) != len(tasks):
            # A database without row locks let another worker in between: keep what is ours.
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
    """Extend the leases of claims by TASK_LEASE_SECONDS from now. Return the void ones."""
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        now = now or database_now(using)
        held = hold(Verb.RENEW, claims)
        update(held, lease_expires_at=now + timedelta(seconds=task_settings().lease_seconds))
    return [claim for claim in claims if claim not in held]


def report(newest: Mapping[Claim, TaskProgressUpdate]) -> list[Claim]:
    """Write the newest progress over the last. Return the void claims.

    Progress is state, not history: its event is sent from the row and stored nowhere.
    """
    move = LEGAL[Verb.REPORT]
    using = alias()
    with transaction.atomic(using=using, savepoint=False):
        if newest:
            announce(using)
        return [
            claim
            for claim, progress in newest.items()
            if not Task.primary.filter(
                pk=claim.task_id, fencing_token=claim.token, status__in=sorted(move.sources)
            ).update(progress=progress.value, progress_text=progress.text)
        ]


def log(lines: Mapping[Claim, Sequence[LogLine]], *, now: datetime | None = None) -> list[Claim]:
    """Record what tasks wrote by `progress.log()`. Return the void claims."""
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
    """End claimed tasks with their results. Return the void claims."""
    return _finish(
        Verb.COMPLETE,
        {
            claim: _Ending({"result": result, "progress": 1.0}, {"result": result})
            for claim, result in results.items()
        },
        now,
    )


def fail(failures: Mapping[Claim, Failure], *, now: datetime | None = None) -> list[Claim]:
    """End claimed tasks with the errors that stopped them. Return the void claims."""
    return _finish(
        Verb.FAIL,
        {claim: _Ending(failure.fields(), failure.data()) for claim, failure in failures.items()},
        now,
    )


def cancel(
    claims: Collection[Claim], *, stuck: Collection[Claim] = (), now: datetime | None = None
) -> list[Claim]:
    """End claimed tasks that stopped because they were asked to. Return the void claims.

    Of those that are stuck, the code did not stop; nobody waits for it any more.
    """
    return _finish(
        Verb.CANCEL, {claim: _Ending({"stuck": claim in stuck}, {}) for claim in claims}, now
    )


def retry(failures: Mapping[Claim, Failure], *, now: datetime | None = None) -> list[Claim]:
    """Let tasks whose attempt failed wait for the next one. Return the void claims.

    How long, the failure says, or else `backoff`. A task that somebody asked to cancel ends
    instead, and so does one that has no attempt left.
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
    """Hand claimed tasks back, their attempt not counted. Return the void claims.

    They keep their place in the line, and any worker may take them at once. A task that somebody
    asked to cancel ends instead.
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
    """Take back tasks whose worker no longer renews their leases; return them as they were.

    Each is cancelled if somebody asked for it, retried if attempts are left, else failed with
    WorkerLost. Waits one heartbeat after a lease ran out, by the database's clock: a worker that
    could not write for a while has that long to renew. One whose heart beats keeps its tasks: where
    it does not renew a lease, somebody holds that row. Safe when many do it at once.
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
        failures = {claim_of(task): worker_lost(task) for task in lost}
        unwanted = [claim_of(task) for task in lost if task.cancel_requested_at]
        again = [
            claim_of(task)
            for task in lost
            if task.attempt < task.max_attempts and claim_of(task) not in unwanted
        ]
        cancel(unwanted, now=now)
        retry({claim: failures[claim] for claim in again}, now=now)
        fail({c: f for c, f in failures.items() if c not in unwanted and c not in again}, now=now)
    return lost


def overdue(now: datetime) -> TaskQuerySet:
    """Running tasks of workers that are gone, whose leases ran out more than a heartbeat ago.

    A worker is not gone that beats, or renews the leases of other tasks: its own row may be held.
    """
    late = now - timedelta(seconds=task_settings().heartbeat_seconds)
    beating = Worker.primary.beating(now).filter(pk=OuterRef("worker"))
    renewed = Task.primary.running().filter(worker=OuterRef("worker"), lease_expires_at__gte=now)
    lost = Task.primary.running().filter(lease_expires_at__lt=late)
    return lost.filter(~Exists(beating), ~Exists(renewed))


def request_cancel(task_id: uuid.UUID, by: str = "") -> Task:
    """Cancel a pending task at once; ask a running one to stop. Return the task.

    To ask again changes nothing. Raises TaskNotFound, and IllegalTransition when it has finished.
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
        record(move, [(task.pk, who(by))], now)
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
        # Tasks that end alike share a statement: most of a batch have the same small result.
        alike: dict[str, list[Claim]] = {}
        for claim in held:
            alike.setdefault(json.dumps(endings[claim].fields, sort_keys=True), []).append(claim)
        for claims in alike.values():
            fields = endings[claims[0]].fields
            update(claims, **UNCLAIMED, status=move.target, finished_at=now, **fields)
        # With the last progress, which nobody is sent from the row once it has ended.
        last = {
            claim: {
                "text": row.progress_text,
                "value": endings[claim].fields.get("progress", row.progress),
            }
            for claim, row in held.items()
        }
        facts = [
            (c.task_id, endings[c].data | {"progress": last[c]} | _stuck(endings[c])) for c in held
        ]
        record(move, facts, now)
    return [claim for claim in endings if claim not in held]


def _hold_wanted(
    verb: Verb, claims: Iterable[Claim], now: datetime
) -> tuple[dict[Claim, Row], list[Claim]]:
    """Hold claims whose tasks are to wait again, and end those that somebody asked to cancel."""
    held = hold(verb, claims)
    wanted = [claim for claim, row in held.items() if not row.cancel_requested_at]
    cancel(held.keys() - set(wanted), now=now)
    return held, wanted


def _stuck(ending: _Ending) -> dict[str, Any]:
    return {"stuck": True} if ending.fields.get("stuck") else {}


def _holder_of_key(keys: Collection[str]) -> Task | None:
    return Task.primary.unfinished().filter(unique_key__in=keys).order_by().first()
