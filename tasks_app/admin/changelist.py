"""The query of the list of tasks: filtered, in an order that an index serves, a part at a time."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, cast

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from tasks_app.admin.filters import owner_named
from tasks_app.admin.filters.times import RANGES, RangeFilter
from tasks_app.admin.index_order import (
    FROM,
    OLDEST,
    OWNER,
    RETRIED,
    SINCE,
    STATUS,
    TROUBLE,
    WINDOW,
    IndexOrder,
    unindexed,
)
from tasks_app.admin.rows import Rows, shown
from tasks_app.models import Task, aware
from tasks_app.states import Status
from tasks_app.store.clock import database_now, parse_time
from tasks_app.store.ledger import alias
from tasks_app.tasks import registry

#: Numbered pages cover at most this many tasks. A link leads to the tasks beyond them.
COUNTED = 1_000
#: Tasks that are new to a list are looked for among this many newest tasks.
NEWEST = 1_000
#: The fewest digits that are taken for the beginning of an ID, and the most tasks found by one.
PREFIX_MIN, PREFIXED = 6, 100


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator that counts at most one task beyond its last page."""

    @cached_property
    def _found(self) -> int:
        tasks = cast("QuerySet[Task]", self.object_list)
        return tasks[: COUNTED + 1].count()

    @cached_property
    def count(self) -> int:
        return min(self._found, COUNTED)

    @property
    def has_more(self) -> bool:
        return self._found > COUNTED


class TaskChangeList(ChangeList):
    """A list that reads a bounded part of an index, with any filters."""

    #: The time at which the searched part ends and more tasks begin; None if it holds all tasks.
    window: datetime | None = None
    #: The time at which the tasks begin that are not counted.
    beyond: datetime | None = None
    #: The time at which the rows were read, by the database's clock.
    now: str
    #: All tasks that match, on any page: for actions on all of them.
    everything: QuerySet[Task]
    #: True if the search text is a task's ID or the beginning of one.
    by_id = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Task]:
        self.by_id = ids_found_by(self.query) is not None
        filtered = super().get_queryset(request, exclude_parameters)
        index_order = self.index_order = IndexOrder.of(request.GET)
        try:
            owner = owner_named(self.params[OWNER], request) if self.params.get(OWNER) else None
        except LookupError:
            # A user who does not exist owns no task.
            self.everything = filtered.none()
            return self.everything
        in_index = index_order.restrict(self.root_queryset.order_by(), owner)
        matching = index_order.restrict(filtered, owner)
        for each in self._ranges(index_order):
            value = self.params.get(each.parameter_name)
            in_index, matching = each.within(in_index, value), each.within(matching, value)
        if self.params.get(OWNER) and not index_order.of_owner:
            matching = unindexed(matching, "owner_id", **_is(owner))
        self.everything = matching
        if self.by_id:
            # A search by ID ignores the window and the order.
            return shown(matching).order_by("pk")
        if start := self._start():
            in_index = index_order.starting_at(in_index, start)
            matching = index_order.starting_at(matching, start)
        if self._needs_window(index_order):
            self.window = index_order.window_end(in_index)
            if self.window is not None:
                matching = index_order.up_to(matching, self.window)
        return shown(matching).order_by(index_order.expression, "pk")

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        tasks = list(self.result_list)
        now = database_now(alias())
        self.now = aware(now).isoformat()
        Rows.of(tasks, request.user, now, self.model_admin.admin_site.name)
        self.result_list = tasks
        if tasks and self.paginator.has_more and self.page_num == self.paginator.num_pages:
            self.beyond = getattr(tasks[-1], self.index_order.field)

    @property
    def is_bounded(self) -> bool:
        return bool(self.paginator.has_more)

    @property
    def window_size(self) -> int:
        return WINDOW

    @property
    def live_query(self) -> str:
        """The query by which the list's script asks for tasks that are new to this list."""
        return self.get_query_string({SINCE: self._known_until()})

    def news(self, since: datetime | None) -> list[Task]:
        """Return tasks that are new to the list since a time.

        If the newest tasks are on top, these are the tasks at the top. Other tasks on the page
        that its viewer has not seen were only beyond the end of the page. In any other order,
        new tasks are looked for among the newest ones.
        """
        if since is None:
            return list(self.result_list)
        index_order = self.index_order
        if index_order.descending:
            return [task for task in self.result_list if getattr(task, index_order.field) > since]
        # Read their ids first, from an index: the filters then apply to a few tasks only.
        newest = Task.objects.filter(created_at__gt=since).order_by("-created_at")
        ids = list(newest.values_list("pk", flat=True)[:NEWEST])
        return list(self.everything.filter(pk__in=ids).only("pk")[: self.list_per_page])

    def _known_until(self) -> str | None:
        """Return the time to pass to `news`; None if the list is empty."""
        tasks, index_order = list(self.result_list), self.index_order
        if not tasks:
            return None
        if index_order.descending:
            newest: datetime = getattr(tasks[0], index_order.field)
            return newest.isoformat()
        if self.multi_page:
            return self.now
        latest: datetime = max(task.created_at for task in tasks)
        return latest.isoformat()

    @property
    def from_the_top(self) -> bool:
        return self.page_num == 1 and FROM not in self.params

    @property
    def beyond_url(self) -> str:
        return self.get_query_string({FROM: self.beyond.isoformat()}) if self.beyond else ""

    @property
    def window_url(self) -> str:
        return self.get_query_string({FROM: self.window.isoformat()}) if self.window else ""

    @property
    def top_url(self) -> str:
        return self.get_query_string(remove=[FROM])

    def _start(self) -> datetime | None:
        text = self.params.get(FROM)
        if not text:
            return None
        start = parse_time(text)
        if start is None:
            raise IncorrectLookupParameters(f"{text!r} is not a time in ISO format")
        return start

    @staticmethod
    def _ranges(index_order: IndexOrder) -> list[type[RangeFilter]]:
        """Return the filters that the index of this order serves."""
        return [each for each in RANGES if each.column == index_order.field]

    def _needs_window(self, index_order: IndexOrder) -> bool:
        """Return whether a filter applies that the index does not serve, which needs a window."""
        if index_order.status is Status.RUNNING:
            return False
        served = {FROM, OLDEST, *(each.parameter_name for each in self._ranges(index_order))} - {
            RETRIED
        }
        served.add(TROUBLE if index_order.of_stuck else OWNER if index_order.of_owner else STATUS)
        return bool(self.query) or any(
            value for name, value in self.get_filters_params().items() if name not in served
        )


def _is(value: Any) -> dict[str, Any]:
    return {"isnull": True} if value is None else {"exact": value}


def uuid_of(text: str) -> uuid.UUID | None:
    """Return the text as a UUID, with or without hyphens; None if it is not one."""
    try:
        return uuid.UUID(text.strip()) if len(text.strip()) in (32, 36) else None
    except ValueError:
        return None


def ids_found_by(text: str) -> list[uuid.UUID] | None:
    """Return the text as an ID, or the first IDs of tasks that begin with it.

    Returns None if it is neither. A text shorter than PREFIX_MIN is taken for a word, not an ID.
    """
    if (task_id := uuid_of(text)) is not None:
        return [task_id]
    digits = text.strip().replace("-", "").lower()
    if not PREFIX_MIN <= len(digits) < 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    bounds = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    ids = Task.objects.filter(pk__range=bounds).order_by("pk").values_list("pk", flat=True)
    return list(ids[:PREFIXED]) or None


def found_by(tasks: QuerySet[Task], text: str, owner_id: Any) -> QuerySet[Task]:
    """Return the tasks with the text in their name, label or error, and those of the owner."""
    condition = (
        Q(name__icontains=text) | Q(error_type__icontains=text) | Q(error_message__icontains=text)
    )
    if names := [task.name() for task in registry.tasks() if _has(str(task.verbose_name), text)]:
        condition |= Q(name__in=names)
    if owner_id is not None:
        condition |= Q(owner=owner_id)
    return tasks.filter(condition)


def _has(label: str, text: str) -> bool:
    return text.casefold() in label.casefold()
