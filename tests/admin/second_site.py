"""A site with several admins: one for support, one only for workers, one only for tasks."""

from django.contrib import admin
from django.urls import include, path

from tasks_app.admin import TaskAdmin, WorkerAdmin
from tasks_app.models import Task, Worker

support = admin.AdminSite("support")
support.register(Task, TaskAdmin)
support.register(Worker, WorkerAdmin)

of_workers = admin.AdminSite("workers")
of_workers.register(Worker, WorkerAdmin)
of_tasks = admin.AdminSite("of_tasks")
of_tasks.register(Task, TaskAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("workers/", of_workers.urls),
    path("of_tasks/", of_tasks.urls),
    path("support/", support.urls),
    path("tasks/", include("tasks_app.urls")),
]
