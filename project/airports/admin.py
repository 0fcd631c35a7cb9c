from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from project.airports.models import Airport
from project.airports.tasks import ExportAirports
from tasks_app import background_action


@admin.register(Airport)
class AirportAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["icao", "iata", "name", "city", "country", "elevation"]
    list_filter = ["country"]
    search_fields = ["=icao", "=iata", "name", "city"]
    show_full_result_count = False
    actions = ["export_selected"]

    @background_action(ExportAirports, description="Export selected airports", permissions=["view"])
    def export_selected(self, request: HttpRequest, queryset: QuerySet[Airport]) -> None:
        """Pass the primary keys of the selected airports to the task."""
