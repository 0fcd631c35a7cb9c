"""`{% load tasks_admin %}`: times and numbers as the admin's pages show them."""

from __future__ import annotations

import math
from datetime import datetime

from django import template
from django.template.defaultfilters import floatformat
from django.utils.formats import number_format
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from tasks_app.web import display
from tasks_app.web.words import WORDS

register = template.Library()

#: Shorter durations, in seconds, have one decimal.
SHORT = 10.0


@register.filter
def moment(time: datetime) -> SafeString:
    return display.time_element(time)


@register.filter
def lasting(seconds: float) -> str:
    """Return a duration in words. Short ones have tenths: a timeout may be under a second."""
    words = {key: str(word) for key, word in WORDS.items()}
    if seconds < SHORT:
        # Rounded first, so that 1.04 s is "1 s", as it is elsewhere on the page.
        return words["seconds"].format(seconds=floatformat(math.floor(seconds * 10 + 0.5) / 10))
    return display.duration(seconds, words)


@register.filter
def grouped(number: int) -> str:
    """Return a number with separators between thousands, even if the site's settings omit them."""
    return number_format(number, force_grouping=True)


@register.filter
def dotted(name: str) -> SafeString:
    """Return a dotted name that can wrap after each dot."""
    return format_html_join(SafeString(".<wbr>"), "{}", ((part,) for part in name.split(".")))
