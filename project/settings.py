"""The demonstration site. Everything the app needs is marked `tasks_app`."""

import os
from fcntl import LOCK_EX, flock
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR", BASE_DIR / "data"))

DEBUG = os.environ.get("DEBUG") == "1"


def kept_key() -> str:
    """Return the secret key in DATA_DIR. The first process that needs the key creates it.

    The code has no default key, because anybody who knew it could sign in as any user.
    """
    path = DATA_DIR / "secret_key"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            stat = os.fstat(file.fileno())
            if not S_ISREG(stat.st_mode) or stat.st_mode & 0o077 or stat.st_uid != os.geteuid():
                raise PermissionError
            # If several processes start together, one creates the key and all read it.
            flock(file, LOCK_EX)
            key = file.read()
            if not key:
                key = get_random_secret_key()
                file.write(key)
            return key
    except PermissionError:
        raise ImproperlyConfigured(
            f"The secret key in {path} must be a file that this user owns, with mode 0600: "
            f"anybody who knows the key can sign in as any user. Delete the file to create a new "
            f"key, or set SECRET_KEY."
        ) from None


# All hosts of a site need the same key: set SECRET_KEY if there are several hosts.
SECRET_KEY = os.environ.get("SECRET_KEY") or kept_key()
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1],testserver").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_eventstream",  # tasks_app
    "tasks_app",  # tasks_app
    "ninja",  # tasks_app: serves the files of the API's page from this site
    "project.airports",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "project.middleware.content_security_policy",
]

ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def database() -> dict[str, Any]:
    """Return the database of DATABASE_URL: sqlite:///path or postgresql://…

    The default is SQLite in DATA_DIR.
    """
    url = urlsplit(os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR / 'db.sqlite3'}"))
    if url.scheme == "postgresql":
        query = dict(pair.split("=", 1) for pair in url.query.split("&") if pair)
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(url.path.lstrip("/")),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "HOST": unquote(query.get("host", url.hostname or "")),
            "PORT": str(url.port or ""),
        }
    # SQLite creates the file, but not its folder. The tests' file is always in DATA_DIR.
    file = Path(unquote(url.path.removeprefix("/")))
    for folder in (file.parent, DATA_DIR):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(file),
        # tasks_app: readers do not block the writer, and writers wait for each other.
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
        },
        # A file, so that the tests' worker processes can share it.
        "TEST": {"NAME": os.environ.get("TEST_DATABASE_FILE") or str(DATA_DIR / "test.sqlite3")},
    }


DATABASES = {"default": database()}

# tasks_app: who may read which stream, and where streams resume from.
EVENTSTREAM_CHANNELMANAGER_CLASS = "tasks_app.live.channels.TaskChannelManager"
EVENTSTREAM_STORAGE_CLASS = "tasks_app.live.storage.TaskEventStorage"
# Other origins whose pages may read the streams.
EVENTSTREAM_ALLOW_ORIGIN = os.environ.get("EVENTSTREAM_ALLOW_ORIGIN", "")


def redis_server(address: str) -> dict[str, Any]:
    """Return the server of REDIS_URL: redis://host:port/number, rediss://… or unix:///path."""
    url = urlsplit(address)
    login = {"username": url.username, "password": url.password and unquote(url.password)}
    if url.scheme == "unix":
        return {"unix_socket_path": unquote(url.path), **login}
    return {
        "host": url.hostname or "localhost",
        "port": url.port or 6379,
        "db": int(url.path.strip("/") or 0),
        "ssl": url.scheme == "rediss",
        **login,
    }


# tasks_app: the change signal between hosts. If this setting exists at all, Redis is used.
if REDIS_URL := os.environ.get("REDIS_URL"):
    EVENTSTREAM_REDIS = redis_server(REDIS_URL)

# tasks_app: a short lease, so that a visitor who kills the worker soon sees the rescue.
TASK_LEASE_SECONDS = 10
TASK_HEARTBEAT_SECONDS = 3
# tasks_app: a short grace, so that `make run` stops soon after Ctrl-C.
TASK_SHUTDOWN_GRACE_SECONDS = 5
# tasks_app: the environment can set any of its settings, such as TASK_MAX_WORKERS=8, except
# TASK_API_AUTH, which is a list.
globals().update({name: text for name, text in os.environ.items() if name.startswith("TASK_")})

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
# The pages are in English, so Django's own messages must be in English too.
LANGUAGES = [("en", "English")]
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]
# Uploads and reports. Only views that check permissions serve them.
MEDIA_ROOT = DATA_DIR / "media"

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "tasks_app": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "INFO")},
        "django": {"handlers": ["console"], "level": "WARNING"},
    },
}
