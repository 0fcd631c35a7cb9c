"""Filters of the list of tasks by a range of times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from tasks_app.admin.filters.base import Choices, LinkedFilter, TaskFilter
from tasks_app.admin.index_order import AGE, ENDED, RETRIED, WAIT, unindexed
from tasks_app.states import Status
from tasks_app.store.clock import database_now, parse_time
from tasks_app.store.ledger import alias
from tasks_app.store.statistics import LAST_DAY, LAST_HOUR, since

READY, SCHEDULED = "ready", "scheduled"


class RangeFilter(TaskFilter):
    """A filter by a range of times. An index serves it if the list is in that order."""

    column: str

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        # If the list is in the order of this column, it restricts itself to the range.
        if self.index_order(request).field == self.column:
            return queryset
        return self.within(queryset, self.value(), indexed=False)

    @classmethod
    def within(
        cls, tasks: QuerySet[Any], value: str | None, *, indexed: bool = True
    ) -> QuerySet[Any]:
        for lookup, time in cls.bounds(value).items() if value else ():
            if indexed:
                tasks = tasks.filter(**{f"{cls.column}__{lookup}": time})
            else:
                tasks = unindexed(tasks, cls.column, **{lookup: time})
        return tasks

    @classmethod
    def bounds(cls, value: str) -> Mapping[str, datetime]:
        """Return the bounds for a value, by their lookups."""
        raise NotImplementedError


class WaitFilter(RangeFilter):
    """Pending tasks: those that could start now, or those scheduled for later.

    The overview counts the same tasks.
    """

    title = gettext_lazy("waiting")
    parameter_name = WAIT
    column = "run_after"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(READY, _("Ready to start")), (SCHEDULED, _("Scheduled"))]

    @classmethod
    def within(
        cls, tasks: QuerySet[Any], value: str | None, *, indexed: bool = True
    ) -> QuerySet[Any]:
        tasks = super().within(tasks, value, indexed=indexed)
        if not value or indexed:
            return tasks
        return unindexed(tasks, "status", exact=Status.PENDING)

    @classmethod
    def bounds(cls, value: str) -> Mapping[str, datetime]:
        try:
            lookup = {READY: "lte", SCHEDULED: "gt"}[value]
        except KeyError:
            raise IncorrectLookupParameters(
                f"{value!r} is neither {READY!r} nor {SCHEDULED!r}"
            ) from None
        return {lookup: database_now(alias())}


class EndedFilter(RangeFilter):
    """Tasks that finished recently: the same that the overview counts."""

    title = gettext_lazy("finished")
    parameter_name = ENDED
    column = "finished_at"

    COURSES = {
        "hour": (LAST_HOUR, gettext_lazy("Past hour")),
        "day": (LAST_DAY, gettext_lazy("Past 24 hours")),
    }

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(value, label) for value, (_course, label) in self.COURSES.items()]

    @classmethod
    def bounds(cls, value: str) -> Mapping[str, datetime]:
        try:
            course, _label = cls.COURSES[value]
        except KeyError:
            raise IncorrectLookupParameters(f"{value!r} is not one of {[*cls.COURSES]}") from None
        return {"gte": since(database_now(alias()), course)}


class AgeFilter(RangeFilter):
    title = gettext_lazy("age")
    parameter_name = AGE
    column = "created_at"

    AGES = {
        "hour": (timedelta(hours=1), gettext_lazy("Past hour")),
        "day": (timedelta(days=1), gettext_lazy("Past 24 hours")),
        "week": (timedelta(days=7), pgettext_lazy("tasks_app", "Past 7 days")),
    }
    OLDER = {"older": (timedelta(days=7), gettext_lazy("Older than 7 days"))}

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(value, label) for value, (_age, label) in (self.AGES | self.OLDER).items()]

    @classmethod
    def bounds(cls, value: str) -> Mapping[str, datetime]:
        try:
            age, _label = (cls.AGES | cls.OLDER)[value]
        except KeyError:
            raise IncorrectLookupParameters(
                f"{value!r} is not one of {[*cls.AGES, *cls.OLDER]}"
            ) from None
        return {"lt" if value in cls.OLDER else "gte": database_now(alias()) - age}


class RetriedFilter(LinkedFilter, RangeFilter):
    """The tasks that one bulk retry started, by the times at which it began and ended."""

    title = gettext_lazy("retried")
    parameter_name = RETRIED
    column = "created_at"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        tasks = super().queryset(request, queryset)
        return tasks.filter(retried_from__isnull=False) if self.value() else tasks

    @classmethod
    def bounds(cls, value: str) -> Mapping[str, datetime]:
        first, last = (parse_time(text) for text in [*value.split("~"), "", ""][:2])
        if first is None or last is None:
            raise IncorrectLookupParameters(f"{value!r} is not two times joined by '~'")
        return {"gte": first, "lte": last}

    @staticmethod
    def between(first: datetime, last: datetime) -> str:
        """Return the filter's value for these times."""
        return f"{first.isoformat()}~{last.isoformat()}"


#: Filters that the list applies itself if it is in the order of their column.
RANGES: tuple[type[RangeFilter], ...] = (WaitFilter, EndedFilter, AgeFilter, RetriedFilter)
