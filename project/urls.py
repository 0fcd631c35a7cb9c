from functools import partial

from django.contrib import admin
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from project import views

login = {
    "redirect_authenticated_user": True,
    "authentication_form": partial(AuthenticationForm, label_suffix=""),
}

urlpatterns = [
    path("", views.my_tasks, name="home"),
    path("tasks/<uuid:task_id>/", views.SiteTaskPage.as_view(), name="task"),
    path("tasks/<uuid:task_id>/file/", views.task_file, name="task-file"),
    path("tasks/", include("tasks_app.urls")),
    path("api/tasks/", include("tasks_app.api.urls")),
    path("airports/", include("project.airports.urls")),
    path("login/", LoginView.as_view(**login), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    # The admin's pages name no icon, so browsers ask for this one.
    path("favicon.ico", RedirectView.as_view(url=static("mark.svg"))),
]
