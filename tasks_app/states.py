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
    """What a stream says. All but the first two are facts, stored for good."""

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
    """What can happen to a task.

    `lifecycle` has a function for each; `request_cancel` withdraws, too, where a task still waits.
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
    """One row of the table: from which statuses, to which, telling what, by whom."""

    sources: frozenset[Status]
    target: Status
    event: EventType | None
    #: Only the holder of the claim may do it, and must name its fencing token.
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

# A status that nothing leaves is terminal: derived, so that the two can never disagree.
TERMINAL = frozenset(Status) - frozenset(
    source for move in LEGAL.values() for source in move.sources
)
UNFINISHED = frozenset(Status) - TERMINAL
#: After these a task does not run, or not in the attempt it was in.
ATTEMPT_ENDS = frozenset(
    move.event for move in LEGAL.values() if move.target is not Status.RUNNING and move.event
)
#: What did not end well may be started anew, as another task.
RETRIABLE = TERMINAL - {Status.COMPLETED}
FACTS = frozenset(EventType) - {EventType.STATUS, EventType.PROGRESS}
TERMINAL_EVENTS = frozenset(
    move.event for move in LEGAL.values() if move.target in TERMINAL and move.event
)
