"""A site with two admins, one of them for support."""

from django.contrib import admin
from django.urls import include, path

from tasks_app.admin import TaskAdmin, WorkerAdmin
from tasks_app.models import Task, Worker

support = admin.AdminSite("support")
support.register(Task, TaskAdmin)
support.register(Worker, WorkerAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("support/", support.urls),
    path("tasks/", include("tasks_app.urls")),
]
