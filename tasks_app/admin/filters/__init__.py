"""The filters of the list of tasks, which never count rows or read a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from tasks_app.admin.filters.base import Choices, LinkedFilter, TaskFilter
from tasks_app.admin.filters.times import AgeFilter, EndedFilter, RetriedFilter, WaitFilter
from tasks_app.admin.index_order import (
    FROM,
    LOST,
    OLDEST,
    OWNER,
    STATUS,
    STUCK,
    TROUBLE,
    IndexOrder,
    unindexed,
)
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.tasks import registry

if TYPE_CHECKING:
    from django.contrib.admin.views.main import ChangeList

#: The names and queues to choose from are those of this many newest tasks.
RECENT = 2_000
#: A filter offers at most this many choices.
CHOICES = 30

ME, NOBODY = "~me", "~nobody"


class StatusFilter(TaskFilter):
    title = gettext_lazy("status")
    parameter_name = STATUS

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(status.value, status.label) for status in Status]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        status = self.value()
        if status is None:
            return queryset
        if status not in Status:
            raise IncorrectLookupParameters(f"{status!r} is not a status")
        # If the list is in the order of this status's index, it restricts itself to the status.
        if self.index_order(request).status == status:
            return queryset
        return unindexed(queryset, "status", exact=status)


class TroubleFilter(TaskFilter):
    title = gettext_lazy("trouble")
    parameter_name = TROUBLE

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(LOST, _("Heartbeat lost")), (STUCK, _("Stuck"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        trouble = self.value()
        if trouble is None:
            return queryset
        if trouble == LOST:
            return queryset.filter(lease_expires_at__lt=database_now(alias()))
        if trouble == STUCK:
            # If the list is in the order of their index, it restricts itself to stuck tasks.
            return queryset if self.index_order(request).of_stuck else queryset.filter(stuck=True)
        raise IncorrectLookupParameters(f"{trouble!r} is neither {LOST!r} nor {STUCK!r}")


class RecentFilter(TaskFilter):
    """A filter by a column, with the values of recent tasks as its choices."""

    column: str

    def lookups(self, request: HttpRequest, _model_admin: Any) -> Choices:
        values = {getattr(task, self.column) for task in recent(request)}
        chosen = self.used_parameters.get(self.parameter_name)
        choices = sorted(values, key=str.lower)[:CHOICES]
        if chosen and chosen not in choices:
            choices.append(chosen)
        return [(value, value) for value in choices]

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        if "\0" in value:
            raise IncorrectLookupParameters("a value must not contain a NUL character")
        return unindexed(queryset, self.column, exact=value)


class NameFilter(RecentFilter):
    title = gettext_lazy("task")
    parameter_name = column = "name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        # Not the label of a name from the URL: finding it would import a module.
        labels = {cls.name(): str(cls.verbose_name) for cls in registry.tasks()}
        labels |= {task.name: task.label for task in recent(request)}
        names = [name for name, _label in super().lookups(request, model_admin)]
        return sorted(((name, labels.get(name, name)) for name in names), key=lambda c: c[1])


class QueueFilter(RecentFilter):
    title = gettext_lazy("queue")
    parameter_name = column = "queue"


class OwnerFilter(TaskFilter):
    """A filter by user name, which is typed because there may be many users."""

    title = gettext_lazy("owner")
    parameter_name = OWNER
    template = "admin/tasks_app/task/filter_owner.html"

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.request = request

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return [(ME, _("Me")), (NOBODY, _("No owner"))]

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        yield from super().choices(changelist)
        value = self.value()
        others = {
            name: given
            for name, given in changelist.get_filters_params().items()
            if name not in (OWNER, FROM)
        }
        yield {
            "form": True,
            "selected": value not in (None, ME, NOBODY),
            "value": value if value not in (None, ME, NOBODY) else "",
            "name": OWNER,
            "others": [(name, each) for name, given in others.items() for each in given],
        }

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        # The list restricts itself to the owner: its order is that of their tasks.
        return queryset

    def value(self) -> str | None:
        return super().value() or None


class WorkerFilter(TaskFilter):
    title = gettext_lazy("worker")
    parameter_name = "worker"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        newest = Worker.objects.order_by("-heartbeat_at")[:10]
        choices = [(str(worker.pk), str(worker)) for worker in newest]
        chosen = self.used_parameters.get(self.parameter_name)
        if chosen and chosen not in dict(choices):
            choices.append((chosen, chosen))
        return choices

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        try:
            worker_id = UUID(value)
        except ValueError:
            raise IncorrectLookupParameters(f"{value!r} is not a UUID") from None
        return unindexed(queryset, "worker_id", exact=worker_id)


class OrderFilter(TaskFilter):
    """Reverses the order of the list. Other orders are not offered: no index serves them."""

    title = gettext_lazy("order")
    parameter_name = OLDEST

    def lookups(self, request: HttpRequest, _model_admin: Any) -> Choices:
        return [("1", _("Oldest first"))]

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        every, reverse = super().choices(changelist)
        pending = IndexOrder.of(changelist.params).status is Status.PENDING
        yield every | {"display": _("Longest waiting first") if pending else _("Newest first")}
        yield reverse | {"display": _("Shortest waiting first") if pending else _("Oldest first")}

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset


class FromFilter(LinkedFilter):
    """The place in the order at which the list begins."""

    title = gettext_lazy("from")
    parameter_name = FROM

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset


FILTERS = (
    StatusFilter,
    TroubleFilter,
    NameFilter,
    QueueFilter,
    OwnerFilter,
    WorkerFilter,
    WaitFilter,
    EndedFilter,
    AgeFilter,
    OrderFilter,
    FromFilter,
    RetriedFilter,
)


def recent(request: HttpRequest) -> list[Task]:
    """Return tasks with the names and queues of the newest ones, read once for each request."""
    tasks: list[Task] | None = getattr(request, "_recent_tasks", None)
    if tasks is None:
        newest = Task.objects.order_by("-created_at").only("name", "queue")[:RECENT]
        tasks = list({(task.name, task.queue): task for task in newest}.values())
        request._recent_tasks = tasks  # type: ignore[attr-defined]
    return tasks


def owner_named(name: str, request: HttpRequest) -> Any:
    """Return the ID of the user that the list's URL names, or None for tasks without an owner.

    Raises LookupError if no user has this name.
    """
    if name == ME:
        return request.user.pk
    if name == NOBODY:
        return None
    if "\0" in name:
        raise LookupError(name)  # Databases refuse a NUL character.
    users = get_user_model()._default_manager
    user = users.filter(**{get_user_model().USERNAME_FIELD: name}).only("pk").first()
    if user is None:
        raise LookupError(name)
    return user.pk
