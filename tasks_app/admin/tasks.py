"""The admin of tasks: TaskAdmin, which the other modules of this package make up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.exceptions import BadRequest, ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from tasks_app.admin.action_views import ActionViews
from tasks_app.admin.changelist import BoundedPaginator, TaskChangeList, found_by, ids_found_by
from tasks_app.admin.detail import DetailViews
from tasks_app.admin.filters import FILTERS
from tasks_app.admin.live import LiveViews
from tasks_app.admin.overview import OverviewViews, stream_url
from tasks_app.admin.rows import COLUMNS, Columns
from tasks_app.admin.start import StartViews
from tasks_app.conf import task_settings
from tasks_app.models import Task
from tasks_app.permissions import may_view_all
from tasks_app.states import EventType
from tasks_app.web.words import LIST_WORDS

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Task]
else:
    Base = admin.ModelAdmin


class TaskAdmin(StartViews, OverviewViews, ActionViews, LiveViews, DetailViews, Columns, Base):
    """The tasks of all users. Operators cannot edit a task. With the permission for it, they can
    start, cancel, retry and delete tasks.
    """

    list_display = COLUMNS
    list_display_links = None
    empty_value_display = ""
    list_filter = FILTERS
    list_per_page = 100
    list_max_show_all = 100
    # OrderFilter sets the order. It offers only orders that an index serves.
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    search_fields = ("pk",)
    search_help_text = _("Search by ID, user, task name or error")
    actions = ("cancel_selected", "retry_selected", "remove_selected")

    class Media:
        css = {"all": ["tasks_app/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        # Django's own deletion would list every event, and delete unfinished tasks.
        return False

    def has_view_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return may_view_all(request.user)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        return Task.objects.visible_to(request.user)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TaskChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Task], search_term: str
    ) -> tuple[QuerySet[Task], bool]:
        text = search_term.strip()
        if not text:
            return queryset, False
        if (ids := ids_found_by(text)) is not None:
            return queryset.filter(pk__in=ids), False
        User = get_user_model()  # noqa: N806 - a class
        owners = User._default_manager.filter(**{User.USERNAME_FIELD: text})
        return found_by(queryset, text, owners.values_list("pk", flat=True).first()), False

    # A bulk action is many transactions, even with ATOMIC_REQUESTS.
    @transaction.non_atomic_requests
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        words = {key: str(word) for key, word in LIST_WORDS.items()}
        live = {
            "live_url": reverse("admin:tasks_app_task_live", current_app=self.admin_site.name),
            "stream_url": stream_url(request, EventType.LOG),
            "keepalive": task_settings().stream_keepalive_seconds,
            "words": json.dumps(words),
        }
        try:
            return super().changelist_view(
                request, {"title": _("Tasks"), "live": live, **(extra_context or {})}
            )
        except ValidationError as error:
            raise BadRequest("A selected ID is not a UUID. Reload the list.") from error
