"""The airports, which are real data for the tasks to work on."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from project.airports.selection import Selection


class AirportQuerySet(models.QuerySet["Airport"]):
    def selected(self, selection: Selection) -> AirportQuerySet:
        airports = self
        if selection.country:
            airports = airports.filter(country=selection.country)
        if selection.has_iata:
            airports = airports.exclude(iata="")
        if selection.min_elevation is not None:
            airports = airports.filter(elevation__gte=selection.min_elevation)
        return airports

    def search(self, text: str) -> AirportQuerySet:
        """Return airports that have every word of the text in a code, name or place."""
        airports = self
        for word in text.split():
            airports = airports.filter(
                Q(icao__iexact=word)
                | Q(iata__iexact=word)
                | Q(country__iexact=word)
                | Q(name__icontains=word)
                | Q(city__icontains=word)
                | Q(subd__icontains=word)
            )
        return airports


class Airport(models.Model):
    """One airport, as `airportsdata` describes it."""

    icao = models.CharField("ICAO code", max_length=4, unique=True)
    iata = models.CharField("IATA code", max_length=3, blank=True, db_index=True)
    name = models.CharField(max_length=100)
    city = models.CharField(max_length=100, blank=True)
    subd = models.CharField("subdivision", max_length=100, blank=True)
    country = models.CharField(max_length=2, db_index=True)
    elevation = models.FloatField(help_text="Feet above sea level")
    lat = models.FloatField("latitude")
    lon = models.FloatField("longitude")
    tz = models.CharField("time zone", max_length=50)
    lid = models.CharField("local code", max_length=10, blank=True)

    objects = AirportQuerySet.as_manager()

    class Meta:
        ordering = ["name", "icao"]
        indexes = [models.Index(fields=["name", "icao"], name="airports_by_name")]
        constraints = [
            models.CheckConstraint(
                name="airports_on_the_globe",
                condition=Q(lat__gte=-90, lat__lte=90, lon__gte=-180, lon__lte=180),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.icao})"
