"""What requests hold and answers tell, beside `tasks_app.schemas`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from tasks_app.schemas import Schema, TaskEvent, TaskInfo
from tasks_app.states import Status
from tasks_app.store.clock import within_the_calendar

#: The most that a page of a list holds, and what it holds unless asked.
PAGE_MAX = 100
PAGE = 50


def _iso(value: Any) -> Any:
    # Pydantic takes numbers as well, for seconds since 1970.
    if not (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]", value)):
        raise ValueError("must be a time such as 2026-11-24T13:00:00Z")
    return value


def _utc(moment: datetime) -> datetime:
    return within_the_calendar(moment).astimezone(UTC)


Moment = Annotated[AwareDatetime, BeforeValidator(_iso), AfterValidator(_utc)]
#: Text as a database takes it: without NUL.
Word = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^\\u0000]*$")]
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX)]


class StartRequest(Schema):
    """A task to be started."""

    task: Word = Field(description="The dotted path of its class, such as `shop.tasks.Import`.")
    params: dict[str, Any] = Field({}, description="Its parameters, by name.")
    run_after: Moment | None = Field(None, description="Not to begin before this moment.")
    unique_key: Word | None = Field(
        None,
        description="While an unfinished task has this key of yours, you can start no other "
        "with it.",
    )


class ListedTask(TaskInfo):
    """A task as a list shows it: without its result, which may be large."""

    result: None = Field(None, exclude=True)


class CancelledTask(Schema):
    """What somebody is told who may cancel a task, and not see it."""

    task_id: UUID
    status: Status
    cancel_requested: bool


class RecordedEvent(TaskEvent):
    """An event of a task's history."""

    id: int


class TaskPage(Schema):
    tasks: list[ListedTask]
    next: str | None = Field(
        description="The `cursor` of the page that follows; null where this is the last. A page "
        "may hold fewer tasks than `limit`, or none, and still have a next."
    )


class EventPage(Schema):
    events: list[RecordedEvent]
    next: int | None = Field(
        description="The `after` of the page that follows; null where this is the last."
    )


class Page(Schema):
    limit: Limit = Field(PAGE, description="The most tasks of a page.")


class Filters(Page):
    """Which tasks to list."""

    status: list[Status] = Field([], description="Of one of these statuses; may be repeated.")
    name: Word | None = Field(None, description="Of this class, by its dotted path.")
    queue: Word | None = Field(None, description="Of this queue.")
    owner: Literal["me"] | None = Field(None, description="`me`: only your own.")
    created_after: Moment | None = Field(None, description="Created at this moment or later.")
    created_before: Moment | None = Field(None, description="Created before this moment.")
    cursor: str | None = Field(
        None, max_length=200, description="Where to go on: the `next` of the page before."
    )


class Following(Schema):
    """Which events to list."""

    after: int = Field(0, ge=0, lt=2**63, description="Those after the event of this id.")
    limit: Limit = Field(PAGE, description="The most events of a page.")
