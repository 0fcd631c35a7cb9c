"""A site whose streams and answers a test controls, with the real tag, script and styles."""

from __future__ import annotations

import itertools
import json
import queue
import select
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth.models import User
from django.template import RequestContext, Template
from django.test import AsyncRequestFactory

import tasks_app
from project.middleware import POLICY
from tasks_app.live.channels import id_of
from tasks_app.models import Task
from tasks_app.states import FACTS
from tests.harness import PATIENCE

STATIC = Path(tasks_app.__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css"}
OWNER = User(pk=1, username="owner")
# There is no database here to read them from.
OWNER._perm_cache = {"tasks_app.retry_task"}  # type: ignore[attr-defined]

Answer = tuple[int, Any]
Serve = Callable[..., "Site"]


def task(**fields: Any) -> Task:
    """Return an unsaved row, running by default."""
    now = datetime.now(UTC)
    status = fields.get("status", "running")
    began = {"attempt": 1, "started_at": now} if status != "pending" else {}
    ended = {"finished_at": now} if status in {"completed", "failed", "cancelled"} else {}
    defaults = {"name": "shop.tasks.Import", "status": status, "owner_id": OWNER.pk}
    times = {"created_at": now - timedelta(seconds=5), "run_after": now - timedelta(seconds=5)}
    row = Task(**(defaults | times | began | ended | fields))
    # Fields of a card that come from other rows; there is no database here.
    row.newest_log_lines = []  # type: ignore[attr-defined]
    Task.retried_as.related.set_cached_value(row, None)  # type: ignore[attr-defined]
    return row


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: dict[str, list[str]]

    @property
    def task_ids(self) -> list[str]:
        return [str(id_of(text)) for text in self.query.get("task", [])]


@dataclass
class Stream:
    """The server's end of an open EventSource."""

    site: Site
    task_ids: list[str]
    last_event_id: str
    #: True if it was opened for all own tasks, not for named ones.
    mine: bool = False
    messages: queue.Queue[bytes | None] = field(default_factory=queue.Queue)
    closed: bool = False

    def send(self, event_type: str, row: Task, event_id: str = "", **data: Any) -> None:
        self.raw(self.event(event_type, row, event_id, **data))

    def event(
        self,
        event_type: str,
        row: Task,
        event_id: str = "",
        *,
        at: datetime | None = None,
        **data: Any,
    ) -> str:
        message = {
            "event_type": event_type,
            "task_id": str(row.pk),
            "timestamp": (at or datetime.now(UTC)).isoformat(),
            "data": data,
        }
        # Like a real stream: each fact has an id, and ids grow.
        if not event_id and event_type in FACTS:
            event_id = str(next(self.site.fact_ids))
        identity = f"id: {event_id}\n" if event_id else ""
        return f"event: {event_type}\n{identity}data: {json.dumps(message)}\n\n"

    def status(self, row: Task, at: datetime | None = None) -> None:
        self.send("task_status", row, at=at, **row.info().model_dump(mode="json"))

    def progress(self, row: Task, value: float | None, text: str = "", attempt: int = 1) -> None:
        row.progress, row.progress_text = value, text
        self.send("progress_update", row, value=value, text=text, attempt=attempt)

    def raw(self, text: str) -> None:
        self.messages.put(text.encode())

    def drop(self) -> None:
        """Break the connection."""
        self.messages.put(None)


class Site(ThreadingHTTPServer):
    """Serves a page of bars, and the URLs that they use."""

    daemon_threads = True

    def __init__(self, *rows: Task) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows = {str(row.pk): row for row in rows}
        self.template = "{% for task in tasks %}{% task_progress task %}{% endfor %}"
        self.head = '<meta name="color-scheme" content="light dark">'
        self.language = "en"
        self.rendering = threading.Lock()
        self.policy = POLICY
        #: The nonce of the site's scripts and styles, if the policy uses nonces.
        self.nonce = ""
        self.fact_ids = itertools.count(1_000)
        #: The id from which a card's page resumes.
        self.since = "40"
        #: Answers to give instead, by the last part of the URL (stream, status, cancel).
        self.answers: dict[str, Answer | Callable[[Request], Answer]] = {}
        #: True if a stream opens with each task's state, as a real one does.
        self.greets = True
        self.requests: list[Request] = []
        self.streams: list[Stream] = []
        self.changed = threading.Condition()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.ending = False
        self.faults: list[BaseException | None] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        self.ending = True
        self.shutdown()
        self.server_close()
        assert self.faults == []

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), f"waited in vain for {what}"

    def stream(self, number: int = 1) -> Stream:
        """Wait for the stream with this number, and return it."""
        self.wait_for(lambda: len(self.streams) >= number, f"stream {number}")
        return self.streams[number - 1]

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.path.split("/")]

    def render(self, template: str | None = None) -> str:
        request = AsyncRequestFactory().get("/page/")
        request.user = OWNER
        if self.nonce:
            request.csp_nonce = self.nonce  # type: ignore[attr-defined]
        context = RequestContext(request, {"tasks": list(self.rows.values())})
        # One at a time, because a patch that ends would remove another one.
        with self.rendering, patch("tasks_app.templatetags.tasks.resumable", lambda: self.since):
            return Template("{% load tasks %}" + (template or self.template)).render(context)

    def handle_error(self, *_args: object) -> None:
        # A browser may close a connection.
        if not isinstance(error := sys.exception(), ConnectionError):
            self.faults.append(error)


class Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def route(self) -> None:
        site, url = self.server, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        request = Request(
            self.command,
            url.path,
            parse_qs(url.query),
            {name.lower(): value for name, value in self.headers.items()},
            {"raw": [body]}
            if "multipart" in self.headers.get("Content-Type", "")
            else parse_qs(body),
        )
        part = url.path.rstrip("/").rpartition("/")[2]
        with site.changed:
            site.requests.append(request)
            site.changed.notify_all()
        if (answer := site.answers.get(part)) is not None:
            self.answer(*(answer(request) if callable(answer) else answer))
        elif url.path.startswith("/static/"):
            path = STATIC / url.path.removeprefix("/static/")
            self.answer(200, path.read_bytes(), TYPES[path.suffix])
        elif part == "stream":
            self.stream(request)
        elif part == "status":
            shown = [site.rows[pk] for pk in request.task_ids if pk in site.rows]
            now = datetime.now(UTC).isoformat()
            # The site's own view reads this about its workers.
            workers = [{k: v for k, v in vars(row).items() if k == "no_worker"} for row in shown]
            infos = [row.info().model_dump(mode="json") for row in shown]
            both = zip(infos, workers, strict=True)
            self.answer(200, {"tasks": [info | worker for info, worker in both], "time": now})
        elif part == "page":
            html = (
                f'<!doctype html><html lang="{site.language}"><title>Bars</title>{site.head}'
                f"<body><main>{site.render()}</main>"
            )
            self.answer(200, html.encode(), "text/html; charset=utf-8")
        elif part == "elsewhere":
            self.answer(200, b"<!doctype html><title>Elsewhere</title>", "text/html")
        else:
            self.answer(404, {})

    def answer(self, status: int, body: Any, content_type: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)  # without a Date header, like daphne
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere/")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, request: Request) -> None:
        site = self.server
        newest = request.headers.get("last-event-id") or " ".join(
            request.query.get("lastEventId", [])
        )
        stream = Stream(site, request.task_ids, newest, "mine" in request.query)
        # The browser's own reconnection delay in milliseconds.
        stream.raw("retry: 50\n\n")
        if site.greets:
            unfinished = [pk for pk, row in site.rows.items() if not row.is_terminal]
            for pk in unfinished if stream.mine else stream.task_ids:
                if pk in site.rows:
                    stream.status(site.rows[pk])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with site.changed:
            site.streams.append(stream)
            site.changed.notify_all()
        try:
            while (message := self.next_message(stream)) is not None:
                self.wfile.write(message)
        finally:
            with site.changed:
                stream.closed = True
                site.changed.notify_all()

    def next_message(self, stream: Stream) -> bytes | None:
        while not self.server.ending:
            try:
                return stream.messages.get(timeout=0.02)
            except queue.Empty:
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    return None
        return None
