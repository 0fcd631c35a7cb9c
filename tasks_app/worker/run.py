"""One attempt under way, as the coordinator sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tasks_app.conf import task_settings
from tasks_app.exceptions import TaskInterrupted
from tasks_app.models import Task
from tasks_app.schemas import TaskProgressUpdate, ascii_only
from tasks_app.store.claims import Claim
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.progress import LogLine, ProgressHandle
from tasks_app.worker.interruption import Stretch

NEVER = float("inf")
#: How soon a row is tried again that another session held; and after how many tries that is told.
HELD_SECONDS, HELD_TOLD = 0.1, 10


@dataclass(eq=False)
class Run:
    """Written by the coordinator's thread, but for `began` and `cls`, which its hand writes; that
    reads `task` and `handle`.

    All moments are by the monotonic clock.
    """

    task: Task
    claim: Claim
    handle: ProgressHandle
    #: Its time in a hand's thread.
    stretch: Stretch = field(default_factory=Stretch)
    claimed: float = field(default_factory=time.monotonic)
    #: When its hand began.
    began: float = NEVER
    #: The task's class, once the hand has imported it. The coordinator imports nothing: what a hand
    #: is just importing it would have to wait for, and leases run out meanwhile.
    cls: type[BaseTask] | None = None
    #: Taken from the handle and not yet written.
    progress: TaskProgressUpdate | None = None
    lines: list[LogLine] = field(default_factory=list)
    #: The database refused what the task said, so it is written in ASCII from then on.
    ascii_only: bool = False
    #: When its newest progress may be written next.
    flush_at: float = 0.0
    #: How often its row was not to be written since another session held it; and until when it is
    #: left alone for that.
    held: int = 0
    held_until: float = 0.0
    #: Its claim is void: what it still does counts for nothing.
    lost: bool = False
    #: When, having been told to stop, it is interrupted; and when it is given up.
    interrupt_at: float = NEVER
    abandon_at: float = NEVER
    #: How long it has from the one to the other.
    grace: float = 0.0

    def take(self) -> None:
        """Take what the task has reported, over what was taken before and is not written."""
        progress, lines = self.handle.take()
        self.progress = progress or self.progress
        self.lines += lines
        if self.ascii_only:
            self.speak_ascii()

    def speak_ascii(self) -> None:
        """Word what is to be written in characters that every encoding has, now and later."""
        self.ascii_only = True
        if self.progress:
            text = ascii_only(self.progress.text)
            self.progress = TaskProgressUpdate(text=text, value=self.progress.value)
        self.lines = [LogLine(line.level, ascii_only(line.message)) for line in self.lines]

    def written(self, next_flush: float) -> None:
        self.progress = None
        self.lines = []
        self.flush_at = next_flush
        self.held, self.held_until = 0, 0.0

    def hold_back(self, moment: float) -> bool:
        """Leave its row alone for a while; return whether that is to be told by now."""
        self.held += 1
        self.held_until = moment + HELD_SECONDS
        return self.held == HELD_TOLD

    def stop(self, reason: TaskInterrupted, grace: float | None = None) -> bool:
        """Tell the task to stop within so many seconds; return whether it is news to it."""
        if self.handle.reason is not None:
            return False
        self.handle.stop(reason)
        self.grace = task_settings().interrupt_grace_seconds if grace is None else grace
        self.interrupt_at = time.monotonic() + self.grace
        self.abandon_at = self.interrupt_at + self.grace
        return True

    def interrupted(self, moment: float) -> None:
        """Give it its time to end, from the moment that it was interrupted, however late."""
        self.interrupt_at = NEVER
        self.abandon_at = moment + self.grace

    @property
    def deadline(self) -> float:
        timeout = self.task.timeout_seconds
        return NEVER if timeout is None or self.handle.reason else self.began + timeout

    @property
    def next_stop(self) -> float:
        """The next moment at which more is to be done to stop it."""
        return min(self.deadline, self.interrupt_at, self.abandon_at)

    @property
    def ordinal(self) -> str:
        return f"attempt {self.task.attempt} of {self.task.max_attempts}"

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 0.0)

    @property
    def log_extra(self) -> dict[str, Any]:
        return {"task_id": str(self.task.pk)}

    def __str__(self) -> str:
        return f"{self.task.pk} ({self.task.name})"
