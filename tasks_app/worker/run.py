"""One attempt under way, as the coordinator sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tasks_app.lifecycle import Claim
from tasks_app.models import Task
from tasks_app.progress import LogLine, ProgressHandle
from tasks_app.schemas import TaskProgressUpdate


@dataclass(eq=False)
class Run:
    """Written by the coordinator's thread; the hand reads `task` and `handle`."""

    task: Task
    claim: Claim
    handle: ProgressHandle
    began: float = field(default_factory=time.monotonic)
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
        return float("inf") if timeout is None else self.began + timeout

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def log_extra(self) -> dict[str, Any]:
        return {"task_id": str(self.task.pk)}

    def __str__(self) -> str:
        return f"{self.task.pk} ({self.task.name})"
