from django.contrib import admin

from project.airports.models import Airport


@admin.register(Airport)
class AirportAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["icao", "iata", "name", "city", "country", "elevation"]
    list_filter = ["country"]
    search_fields = ["=icao", "=iata", "name", "city"]
    show_full_result_count = False
