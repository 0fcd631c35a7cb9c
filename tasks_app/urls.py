from django.urls import path

from tasks_app.web import views

app_name = "tasks_app"

urlpatterns = [
    path("stream/", views.stream, name="streams"),
    path("status/", views.statuses, name="statuses"),
    path("<uuid:task_id>/", views.TaskPage.as_view(), name="task"),
    path("<uuid:task_id>/stream/", views.stream, name="stream"),
    path("<uuid:task_id>/status/", views.status, name="status"),
    path("<uuid:task_id>/cancel/", views.cancel, name="cancel"),
    path("<uuid:task_id>/retry/", views.retry, name="retry"),
]
