"""The settings of a site that keeps its time without zones, where summer time comes and goes."""

from project.settings import *  # noqa: F403

USE_TZ = False
TIME_ZONE = "Europe/Berlin"
