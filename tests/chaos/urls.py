"""The site's URLs, and views by which the feeder starts and cancels tasks in the web process."""

import json
from uuid import UUID

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from tasks_app.exceptions import DuplicateTask, IllegalTransition
from tasks_app.service import task_service


@csrf_exempt
def start(request: HttpRequest) -> JsonResponse:
    order = json.loads(request.body)
    try:
        with transaction.atomic():
            started = task_service.start_task(
                order["task"], order["params"], owner=request.user, **order["options"]
            )
    except DuplicateTask:
        return JsonResponse({}, status=409)
    return JsonResponse({"task_id": str(started.task_id)})


@csrf_exempt
def cancel(request: HttpRequest, task_id: UUID) -> JsonResponse:
    try:
        task_service.cancel_task(task_id, by=request.user)
    except IllegalTransition:
        return JsonResponse({}, status=409)
    return JsonResponse({})


urlpatterns = [
    path("chaos/start/", start),
    path("chaos/<uuid:task_id>/cancel/", cancel),
    path("", include("project.urls")),
]
