"""A site whose paths begin with a language code, except one."""

from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path

urlpatterns = [
    path("plain/", include(("tasks_app.urls", "tasks_app"), namespace="plain")),
    *i18n_patterns(path("tasks/", include("tasks_app.urls"))),
]
