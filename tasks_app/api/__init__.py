"""The REST API: starts, shows and ends tasks for programs. `docs/api.md` is its guide.

A site includes `tasks_app.api.urls`, or adds `router` to a NinjaAPI of its own.
"""

from tasks_app.api.auth import SessionAuth
from tasks_app.api.operations import router
from tasks_app.api.problems import Problem, answer_all, answer_problem

__all__ = ["Problem", "SessionAuth", "answer_all", "answer_problem", "router"]
