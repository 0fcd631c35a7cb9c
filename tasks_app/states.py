"""The whole state machine: the statuses, the events, and every legal transition."""

from dataclasses import dataclass
from enum import StrEnum

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Status(TextChoices):
    PENDING = "pending", _("Pending")
    RUNNING = "running", _("Running")
    COMPLETED = "completed", _("Completed")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


class EventType(TextChoices):
    """A message of a stream. All except the first two are facts and are stored."""

    STATUS = "task_status", _("Status")
    PROGRESS = "progress_update", _("Progress")
    QUEUED = "task_queued", _("Queued")
    STARTED = "task_started", _("Started")
    LOG = "task_log", _("Log")
    CANCEL_REQUESTED = "task_cancel_requested", _("Cancel requested")
    RETRY_SCHEDULED = "task_retry_scheduled", _("Retry scheduled")
    COMPLETED = "task_completed", _("Completed")
    FAILED = "task_failed", _("Failed")
    CANCELLED = "task_cancelled", _("Cancelled")

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_EVENTS


class Verb(StrEnum):
    """A transition of a task.

    `lifecycle` has one function per verb, except that `request_cancel` also withdraws a task that
    is still pending.
    """

    ENQUEUE = "enqueue"
    CLAIM = "claim"
    RENEW = "renew"
    REPORT = "report"
    LOG = "log"
    REQUEST_CANCEL = "request_cancel"
    WITHDRAW = "withdraw"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the table: allowed source statuses, target status, event, and who may do it."""

    sources: frozenset[Status]
    target: Status
    event: EventType | None
    #: True if only the holder of the claim may do it, by naming its fencing token.
    fenced: bool


_NEW: frozenset[Status] = frozenset()
_PENDING = frozenset({Status.PENDING})
_RUNNING = frozenset({Status.RUNNING})

LEGAL: dict[Verb, Move] = {
    Verb.ENQUEUE: Move(_NEW, Status.PENDING, EventType.QUEUED, fenced=False),
    Verb.CLAIM: Move(_PENDING, Status.RUNNING, EventType.STARTED, fenced=False),
    Verb.RENEW: Move(_RUNNING, Status.RUNNING, None, fenced=True),
    Verb.REPORT: Move(_RUNNING, Status.RUNNING, EventType.PROGRESS, fenced=True),
    Verb.LOG: Move(_RUNNING, Status.RUNNING, EventType.LOG, fenced=True),
    Verb.REQUEST_CANCEL: Move(_RUNNING, Status.RUNNING, EventType.CANCEL_REQUESTED, fenced=False),
    Verb.WITHDRAW: Move(_PENDING, Status.CANCELLED, EventType.CANCELLED, fenced=False),
    Verb.COMPLETE: Move(_RUNNING, Status.COMPLETED, EventType.COMPLETED, fenced=True),
    Verb.FAIL: Move(_RUNNING, Status.FAILED, EventType.FAILED, fenced=True),
    Verb.CANCEL: Move(_RUNNING, Status.CANCELLED, EventType.CANCELLED, fenced=True),
    Verb.RETRY: Move(_RUNNING, Status.PENDING, EventType.RETRY_SCHEDULED, fenced=True),
    Verb.RELEASE: Move(_RUNNING, Status.PENDING, EventType.QUEUED, fenced=True),
}

# Derived from the table, so the two can never disagree: no verb leaves a terminal status.
TERMINAL = frozenset(Status) - frozenset(
    source for move in LEGAL.values() for source in move.sources
)
UNFINISHED = frozenset(Status) - TERMINAL
#: Events that end an attempt. The task then waits again or has finished.
ATTEMPT_ENDS = frozenset(
    move.event for move in LEGAL.values() if move.target is not Status.RUNNING and move.event
)
#: A failed or cancelled task can be retried, as a new task.
RETRIABLE = TERMINAL - {Status.COMPLETED}
FACTS = frozenset(EventType) - {EventType.STATUS, EventType.PROGRESS}
TERMINAL_EVENTS = frozenset(
    move.event for move in LEGAL.values() if move.target in TERMINAL and move.event
)
