"""What crosses a boundary: to callers, to browsers, to programs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.utils.translation import gettext_lazy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks_app.states import EventType, Status


def printable(text: str) -> str:
    """Replace what a database or a socket refuses: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def ascii_only(text: str) -> str:
    """Return a text in characters that every encoding has, with escapes for the others."""
    return text.encode("ascii", "backslashreplace").decode()


def escaped(text: str, keep: str = "") -> str:
    """Spell control characters of a text, such as \\n and \\x1b, but for those to keep."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def clipped(text: str, most: int) -> str:
    """Return a text of so many characters at most, and a mark where the rest was."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


# The most characters kept of what tasks and their errors say; the rest is cut off with a mark.
PROGRESS_MAX = 1_000
LOG_LINE_MAX = 10_000
TYPE_MAX = 200
MESSAGE_MAX = 10_000
TRACEBACK_MAX = 100_000
#: The most bytes of parameters and of a result, as JSON; more is refused.
JSON_MAX = 1_048_576
#: How deep their lists and objects may be nested; Pydantic reads no more than 200 levels.
DEPTH_MAX = 100
# The most characters of what names a task, its queue and its keys; more is refused.
NAME_MAX = 200
QUEUE_MAX = 100
KEY_MAX = 200
#: The most attempts that a task may be allowed.
ATTEMPTS_MAX = 1_000_000

#: What a task's owner reads where neither the error nor the class has words for them.
NO_WORDS = gettext_lazy("The task failed.")

Text = Annotated[str, AfterValidator(printable)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskProgressUpdate(Schema):
    """The newest progress: what is being done, and the part of it that is."""

    text: Text = ""
    #: None where the task has not said, or cannot know.
    value: Fraction | None = None


class TaskStartResponse(Schema):
    task_id: UUID
    #: None where the site does not include `tasks_app.urls`.
    stream_url: str | None
    status: Status
    #: Whether an earlier start by the same idempotency key made it. Not part of the JSON.
    replayed: bool = Field(False, exclude=True)


class TaskError(Schema):
    """Why a task failed.

    Its owner is told the words that the task has for them. The exception's type and message are for
    users who may see all tasks, its traceback is for the admin and commands.
    """

    #: None where the message is the owner's.
    type: str | None = None
    message: str

    @classmethod
    def public(cls, text: str | None) -> TaskError:
        return cls(message=text or str(NO_WORDS))


class TaskInfo(Schema):
    """A task as it stands."""

    task_id: UUID
    name: str
    status: Status
    progress: TaskProgressUpdate
    attempt: int
    max_attempts: int
    cancel_requested: bool
    created_time: datetime
    #: When it may start; None once it has nothing to wait for.
    run_after: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    result: Any = None
    error: TaskError | None = None
    #: The finished task that this one repeats.
    retried_from: UUID | None = None


class TaskEvent(Schema):
    """One message of a stream. `data` depends on the type; see docs/task_system_usage.md."""

    event_type: EventType
    task_id: UUID
    timestamp: datetime
    data: dict[str, Any]
