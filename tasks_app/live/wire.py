"""What goes over a stream, as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.utils import timezone
from django_eventstream.utils import sse_encode_event

from tasks_app.live.cursor import Cursor
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.schemas import TaskEvent as Message
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import EventType

logger = SafeLogger("tasks_app.relay")

KEEP_ALIVE = b"event: keep-alive\ndata:\n\n"
#: The last of a stream that ends by itself, whatever its tasks ended as: some clients, htmx's among
#: them, open a stream anew when it closes, unless an event of one name tells them not to.
STREAM_END = b"event: stream-end\ndata:\n\n"
#: What a stream begins with: bytes, so that the headers go out even where no event does yet; and
#: the milliseconds after which a browser reconnects by itself. The field is the first event's,
#: for some clients take a blank line after it for an event of its own.
BEGINNING = b": events of tasks\nretry: 2000\n"


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest progress of a running task, as its row has it."""

    task_id: UUID
    attempt: int
    value: float | None
    text: str

    def follows(self, other: Progress) -> bool:
        """Whether this is newer than other progress of the task."""
        if self.attempt != other.attempt:
            return self.attempt > other.attempt
        return self != other and (other.value is None or (self.value or 0.0) >= other.value)


@dataclass(kw_only=True)
class Fact:
    """A fact on its way to listeners, encoded once for all of them.

    Has what django-eventstream asks of an event, and what a stream asks to keep its promises.
    """

    type: str
    data: str
    id: int
    wire: bytes
    #: The same without the task's result.
    brief: bytes
    task_id: UUID
    transaction: int | None
    #: What a viewer has had who was sent this.
    cursor: Cursor
    #: The relay's own count, by which a stream merges its channels.
    order: int = 0


@dataclass(kw_only=True)
class Report:
    """Progress on its way to listeners. It has no id: nothing resumes from it."""

    type: str
    data: str
    id: None = None
    wire: bytes
    progress: Progress
    order: int = 0


def fact(row: TaskEvent, cursor: Cursor) -> Fact:
    """Return a stored fact as it is sent; with it, a viewer has had what the cursor covers."""
    kind, message = row.event_type, row.message()
    data = message.model_dump_json()
    whole = _encode(kind, data, cursor)
    brief = whole
    if message.data.get("result") is not None:
        rest = message.model_dump_json(exclude={"data": {"result"}})
        brief = _encode(kind, rest, cursor)
    return Fact(
        type=kind,
        data=data,
        id=row.pk,
        wire=whole,
        brief=brief,
        task_id=row.task_id,
        transaction=row.transaction,
        cursor=cursor,
    )


def fact_if_known(row: TaskEvent, cursor: Cursor) -> Fact | None:
    """Return a stored fact as it is sent; None, and a line in the log, if it cannot be sent.

    A newer worker may write an event that this process does not know.
    """
    try:
        return fact(row, cursor)
    except ValueError:
        logger.exception("Event %s cannot be sent, and is left out", row.pk)
        return None


def report(progress: Progress) -> Report:
    update = TaskProgressUpdate(text=progress.text, value=progress.value)
    data = _message(
        EventType.PROGRESS, progress.task_id, update.model_dump() | {"attempt": progress.attempt}
    )
    kind = EventType.PROGRESS.value
    return Report(type=kind, data=data, wire=_encode(kind, data), progress=progress)


def status(task: Task, cursor: Cursor | None, *, results: bool = True) -> bytes:
    left_out = None if results else {"result"}
    info = task.info().model_dump(mode="json", exclude=left_out)
    data = _message(EventType.STATUS, task.pk, info)
    return _encode(EventType.STATUS.value, data, cursor)


def _message(kind: EventType, task_id: UUID, data: dict[str, object]) -> str:
    moment = aware(timezone.now())
    return Message(event_type=kind, task_id=task_id, timestamp=moment, data=data).model_dump_json()


def _encode(kind: str, data: str, cursor: Cursor | None = None) -> bytes:
    event_id = None if cursor is None else str(cursor)
    return str(sse_encode_event(kind, data, event_id=event_id)).encode()
