"""Authentication: by the site's session, or by the authenticators in TASK_API_AUTH."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, QueryDict
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.datastructures import MultiValueDict
from django.utils.module_loading import import_string
from ninja.security.base import AuthBase

from tasks_app.api.problems import Problem
from tasks_app.conf import task_settings

if TYPE_CHECKING:
    from tasks_app.permissions import User

Authenticator = Callable[[HttpRequest], Any]


class SessionAuth(AuthBase):
    """Authenticates the user of Django's session. Requests that change something need a CSRF token.

    If nobody is logged in, the next authenticator decides. django-ninja's own class would first
    require the CSRF cookie, which a client with a token does not have.
    """

    openapi_type = "apiKey"
    openapi_in = "cookie"
    openapi_name = settings.SESSION_COOKIE_NAME
    #: Makes django-ninja's page of the API send the token.
    csrf = True

    def __call__(self, request: HttpRequest) -> User | None:
        if not request.user.is_authenticated:
            return None
        if reason := _csrf_fault(request):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"{reason} Send the CSRF token of this site's pages, or of its cookie "
                f"{settings.CSRF_COOKIE_NAME}, in the header X-CSRFToken.",
            )
        return request.user


class _Check(CsrfViewMiddleware):
    """Returns the reason for a refusal. Django would render a page, which is not shown here."""

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _csrf_fault(request: HttpRequest) -> str:
    check = _Check(lambda _: HttpResponse())
    # Django's own check let this request pass, because all views of django-ninja are exempt.
    request.csrf_processing_done = False  # type: ignore[attr-defined]
    # The check would look for the token in a form, and so read and parse the whole body.
    request._post, request._files = QueryDict(), MultiValueDict()  # type: ignore[attr-defined]
    check.process_request(request)
    return str(check.process_view(request, _refusable, (), {}) or "")


def _refusable(request: HttpRequest) -> HttpResponse:
    """Serve as a view that is not exempt from the check."""
    raise NotImplementedError


def authenticators() -> list[Authenticator]:
    """Return the authenticators of TASK_API_AUTH, in order. The first that knows the user decides.

    If they cannot be loaded, return one that loads them again at each request, and raises the error
    then. URLs must be importable, or `manage.py check` could not report the error.
    """
    try:
        return _load()
    except ImproperlyConfigured:
        return [_load_and_ask]


def authenticator(path: str) -> Authenticator:
    """Load the authenticator at a path of TASK_API_AUTH. Raises ImproperlyConfigured."""
    try:
        imported = import_string(path)
        loaded = imported() if isinstance(imported, type) else imported
    except (ImportError, TypeError) as error:
        raise ImproperlyConfigured(f"TASK_API_AUTH names {path!r}: {error}.") from error
    if not callable(loaded):
        raise ImproperlyConfigured(f"TASK_API_AUTH names {path!r}, which cannot be called.")
    return loaded  # type: ignore[no-any-return]


def _load() -> list[Authenticator]:
    return [authenticator(path) for path in task_settings().api_auth]


def _load_and_ask(request: HttpRequest) -> Any:
    return next((user for one in _load() if (user := one(request))), None)


def challenge(auth: list[Authenticator]) -> str:
    """Return the value of WWW-Authenticate: the schemes by which a request can log in."""
    schemes = [getattr(one, "openapi_scheme", "session") for one in auth]
    return ", ".join(dict.fromkeys(str(scheme).capitalize() for scheme in schemes))


def caller(request: HttpRequest) -> User:
    """Return the user who sent the request, as the authenticator found them."""
    user = request.auth  # type: ignore[attr-defined]  # django-ninja's
    if not hasattr(user, "is_authenticated"):
        raise ImproperlyConfigured(
            f"An authenticator of TASK_API_AUTH returned {user!r}. It must return the user who "
            f"sent the request, or None."
        )
    if not user.is_active:
        raise Problem(HTTPStatus.UNAUTHORIZED, "This user account is inactive.")
    return user  # type: ignore[no-any-return]
