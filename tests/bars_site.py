"""The settings of a site with one page more: all of the user's bars."""

from project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.bars_urls"
