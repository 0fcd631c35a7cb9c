from django.apps import AppConfig


class AirportsConfig(AppConfig):
    name = "project.airports"
    verbose_name = "Airports"
