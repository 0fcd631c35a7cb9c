"""One attempt under way, as the coordinator sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tasks_app.claims import Claim
from tasks_app.models import Task
from tasks_app.progress import LogLine, ProgressHandle
from tasks_app.schemas import TaskProgressUpdate

NEVER = float("inf")


@dataclass(eq=False)
class Run:
    """Written by the coordinator's thread, but for `began`; the hand reads `task` and `handle`."""

    task: Task
    claim: Claim
    handle: ProgressHandle
    claimed: float = field(default_factory=time.monotonic)
    #: When its hand began, by the monotonic clock. Written by the hand.
    began: float = NEVER
    #: Taken from the handle and not yet written.
    progress: TaskProgressUpdate | None = None
    lines: list[LogLine] = field(default_factory=list)
    #: When its newest progress may be written next, by the monotonic clock.
    flush_at: float = 0.0
    #: Its claim is void: what it still does counts for nothing.
    lost: bool = False

    def take(self) -> None:
        """Take what the task has reported, over what was taken before and is not written."""
        progress, lines = self.handle.take()
        self.progress = progress or self.progress
        self.lines += lines

    def written(self, next_flush: float) -> None:
        self.progress = None
        self.lines = []
        self.flush_at = next_flush

    @property
    def deadline(self) -> float:
        timeout = self.task.timeout_seconds
        return NEVER if timeout is None else self.began + timeout

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 0.0)

    @property
    def log_extra(self) -> dict[str, Any]:
        return {"task_id": str(self.task.pk)}

    def __str__(self) -> str:
        return f"{self.task.pk} ({self.task.name})"
