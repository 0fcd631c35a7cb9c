"""Tasks and workers in Django's admin, for operators."""

from django.contrib import admin

from tasks_app.admin.tasks import TaskAdmin
from tasks_app.admin.workers import WorkerAdmin
from tasks_app.models import Task, Worker

admin.site.register(Task, TaskAdmin)
admin.site.register(Worker, WorkerAdmin)
