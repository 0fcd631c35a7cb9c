"""Who asks: by the site's session, or by whatever the site adds in TASK_API_AUTH."""

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
    """The user of Django's session, with its CSRF token for all that is not only read.

    Unlike django-ninja's own, it lets pass to the next one whoever is not logged in: a client with
    a token has no CSRF cookie.
    """

    openapi_type = "apiKey"
    openapi_in = "cookie"
    openapi_name = settings.SESSION_COOKIE_NAME
    #: Tells django-ninja's page of the API to send the token.
    csrf = True

    def __call__(self, request: HttpRequest) -> User | None:
        if not request.user.is_authenticated:
            return None
        if reason := _csrf_fault(request):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"{reason} Send the token of this site's pages, or its cookie "
                f"{settings.CSRF_COOKIE_NAME}, in the header X-CSRFToken.",
            )
        return request.user


class _Check(CsrfViewMiddleware):
    """Tells why it refuses, where Django would render a page that nobody sees."""

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _csrf_fault(request: HttpRequest) -> str:
    check = _Check(lambda _: HttpResponse())
    # Django's own has passed this request: all views of django-ninja are exempt.
    request.csrf_processing_done = False  # type: ignore[attr-defined]
    # It would look for the token in a form, and so read and parse any body to its end.
    request._post, request._files = QueryDict(), MultiValueDict()  # type: ignore[attr-defined]
    check.process_request(request)
    return str(check.process_view(request, _refusable, (), {}) or "")


def _refusable(request: HttpRequest) -> HttpResponse:
    """A view that is not exempt."""
    raise NotImplementedError


def authenticators() -> list[Authenticator]:
    """Those of TASK_API_AUTH, in its order; the first that knows the user decides.

    Where they cannot be had, one that asks for them again at each request, and raises what is
    wrong: URLs must load, or `manage.py check` could not tell.
    """
    try:
        return _named()
    except ImproperlyConfigured:
        return [_late]


def authenticator(path: str) -> Authenticator:
    """Return what a path of TASK_API_AUTH names. Raises ImproperlyConfigured."""
    try:
        found = import_string(path)
        made = found() if isinstance(found, type) else found
    except (ImportError, TypeError) as error:
        raise ImproperlyConfigured(f"TASK_API_AUTH names {path!r}: {error}.") from error
    if not callable(made):
        raise ImproperlyConfigured(f"TASK_API_AUTH names {path!r}, which cannot be called.")
    return made  # type: ignore[no-any-return]


def _named() -> list[Authenticator]:
    return [authenticator(path) for path in task_settings().api_auth]


def _late(request: HttpRequest) -> Any:
    return next((user for one in _named() if (user := one(request))), None)


def challenge(among: list[Authenticator]) -> str:
    """What WWW-Authenticate says: the schemes by which a request can log in."""
    schemes = [getattr(one, "openapi_scheme", "session") for one in among]
    return ", ".join(dict.fromkeys(str(scheme).capitalize() for scheme in schemes))


def caller(request: HttpRequest) -> User:
    """The user who asks, as the authenticator found it."""
    user = request.auth  # type: ignore[attr-defined]  # django-ninja's
    if not hasattr(user, "is_authenticated"):
        raise ImproperlyConfigured(
            f"An authenticator of TASK_API_AUTH returned {user!r}. It must return the user who "
            f"asks, or None."
        )
    if not user.is_active:
        raise Problem(HTTPStatus.UNAUTHORIZED, "This user is not active.")
    return user  # type: ignore[no-any-return]
