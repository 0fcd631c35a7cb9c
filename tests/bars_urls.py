"""The site's URLs, and a page with a bar for each task of its user, which names them one by one."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.urls import path

from project.urls import urlpatterns as urls_of_the_site
from tasks_app.models import Task

BARS = """<!doctype html><html lang="en"><title>Bars</title><link rel="icon" href="data:,">
{% load tasks %}{% for task in tasks %}{% task_progress task form=form %}{% endfor %}"""


@login_required
def bars(request: HttpRequest) -> HttpResponse:
    tasks = Task.objects.filter(owner=request.user)
    context = {"tasks": tasks, "form": request.GET.get("form", "compact")}
    return HttpResponse(Template(BARS).render(RequestContext(request, context)))


urlpatterns = [*urls_of_the_site, path("bars/", bars)]
