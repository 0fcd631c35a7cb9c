"""Settings of a site with USE_TZ off, in a time zone with summer time."""

from project.settings import *  # noqa: F403

USE_TZ = False
TIME_ZONE = "Europe/Berlin"
