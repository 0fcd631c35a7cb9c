"""The REST API, by which programs start, watch and end tasks. See `docs/api.md`.

A site includes `tasks_app.api.urls`, or adds `router` to its own NinjaAPI.
"""

from tasks_app.api.auth import SessionAuth
from tasks_app.api.operations import router
from tasks_app.api.problems import Problem, answer_all, answer_problem

__all__ = ["Problem", "SessionAuth", "answer_all", "answer_problem", "router"]
