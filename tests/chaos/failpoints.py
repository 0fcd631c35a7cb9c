"""Named points at which a process kills itself. Only the tests know them."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

from django.db import transaction

from tests.chaos import ledger

#: Watched functions: the module, the function, and the argument (None: the return value) that must
#: not be empty for a pass to count. True: every pass counts.
WATCHED: dict[str, tuple[str, str, int | bool | None]] = {
    "register": ("tasks_app.worker.presence", "register", True),
    "enqueue": ("tasks_app.store.lifecycle", "enqueue", 0),
    "claim": ("tasks_app.store.lifecycle", "claim", None),
    "renew": ("tasks_app.store.lifecycle", "renew", 0),
    "report": ("tasks_app.store.lifecycle", "report", 0),
    "log": ("tasks_app.store.lifecycle", "log", 0),
    "complete": ("tasks_app.store.lifecycle", "complete", 0),
    "fail": ("tasks_app.store.lifecycle", "fail", 0),
    "cancel": ("tasks_app.store.lifecycle", "cancel", 0),
    "retry": ("tasks_app.store.lifecycle", "retry", 0),
    "release": ("tasks_app.store.lifecycle", "release", 0),
    "rescue": ("tasks_app.store.lifecycle", "rescue", None),
    "request_cancel": ("tasks_app.store.lifecycle", "request_cancel", True),
    "prune": ("tasks_app.store.retention", "_delete", 0),
    "progress": ("tasks_app.tasks.progress", "ProgressHandle.send_progress", True),
    "send_status": ("tasks_app.live.wire", "status", True),
    "send_fact": ("tasks_app.live.wire", "fact", True),
    "send_progress": ("tasks_app.live.wire", "report", True),
}

#: Modules whose functions write to the database.
WRITES = {"tasks_app.store.lifecycle", "tasks_app.store.retention", "tasks_app.worker.presence"}
BOTH = ("inside", "committed")

#: For each role: the failpoints, and the highest pass at which they strike. "inside": all is
#: written, nothing committed. "committed": right after the commit, before the process continues.
OF_WORKER = {
    "register.committed": 1,
    **{f"claim.{when}": 30 for when in BOTH},
    **{f"renew.{when}": 4 for when in BOTH},
    **{f"report.{when}": 40 for when in BOTH},
    **{f"log.{when}": 5 for when in BOTH},
    **{f"complete.{when}": 20 for when in BOTH},
    **{f"fail.{when}": 3 for when in BOTH},
    **{f"retry.{when}": 3 for when in BOTH},
    **{f"cancel.{when}": 2 for when in BOTH},
    **{f"enqueue.{when}": 3 for when in BOTH},
    **{f"rescue.{when}": 1 for when in BOTH},
    **{f"prune.{when}": 2 for when in BOTH},
    "progress.inside": 100,
}
#: For a worker that is asked to stop.
OF_LEAVER = {f"release.{when}": 1 for when in BOTH}
OF_CLEANUP = {f"{what}.{when}": 1 for what in ("rescue", "prune") for when in BOTH}
OF_WEB = {
    **{f"enqueue.{when}": 5 for when in BOTH},
    **{f"request_cancel.{when}": 2 for when in BOTH},
    "send_status.inside": 10,
    "send_fact.inside": 100,
    "send_progress.inside": 100,
}
OF = {"worker": OF_WORKER, "web": OF_WEB, "cleanup": OF_CLEANUP}
ALL = {f"{role} {name}" for role, points in OF.items() for name in points} | {
    f"worker {name}" for name in OF_LEAVER
}


def arm(name: str, passes: int) -> None:
    """Make this process kill itself at the given pass through a failpoint."""
    what, when = name.split(".")
    module, path, counted = WATCHED[what]
    *outer, attribute = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, attribute)
    numbers = itertools.count(1)

    def strike() -> None:
        if next(numbers) == passes:
            die(name)

    # If the verb's own transaction were the outermost, all would be committed when it returns.
    inside = when == "inside" and module in WRITES

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with transaction.atomic() if inside else nullcontext():
            answer = original(*args, **kwargs)
            if counted is True or (answer if counted is None else args[counted]):
                if when == "committed":
                    # Without an open transaction this is immediately.
                    transaction.on_commit(strike)
                else:
                    strike()
            return answer

    setattr(owner, attribute, wrapped)
    _replace(original, wrapped)


def die(name: str) -> None:
    ledger.note("deaths", pid=os.getpid(), name=name)
    os.kill(os.getpid(), signal.SIGKILL)


def _replace(original: Callable[..., Any], wrapped: Callable[..., Any]) -> None:
    """Replace it where it was imported by name or is in a table."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("tasks_app."):
            continue
        for key, value in list(vars(module).items()):
            if value is original:
                setattr(module, key, wrapped)
            elif isinstance(value, dict) and not key.startswith("__"):
                for inner, one in value.items():
                    if one is original:
                        value[inner] = wrapped
