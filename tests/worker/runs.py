"""Runs as the coordinator creates them."""

from __future__ import annotations

import uuid
from typing import Any

from tasks_app.states import Status
from tasks_app.store.claims import claim_of
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.worker.runs import Run
from tests.rows import row


def made(task: type[Any] | str = "tests.tasks.Noop", **fields: Any) -> Run:
    """Return a run of a task whose row is not saved.

    Given a class, the run is as if its thread had imported the class.
    """
    name = task if isinstance(task, str) else task.name()
    found = row(Status.RUNNING, name=name, fencing_token=uuid.uuid4(), **fields)
    cls = None if isinstance(task, str) else task
    return Run(found, claim_of(found), ProgressHandle(), cls=cls)
