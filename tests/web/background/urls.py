from django.urls import include, path

from tests.web.background.test_admin import odd_site

urlpatterns = [path("admin/", odd_site.urls), path("tasks/", include("tasks_app.urls"))]
