"""The gateway's ASGI app, its request log, and the server process."""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export_pipeline.gateway.dialect import HEAD, build_app
from export_pipeline.gateway.dialects import cometly, gu1, native, sendgrid
from export_pipeline.gateway.services import THREADS, Services, open_services
from export_pipeline.settings import Settings

LOGGER = logging.getLogger("export_pipeline.gateway")
_DIALECTS = (
    (sendgrid.DIALECT, sendgrid.ROUTERS, ("/v3", "/sendgrid")),
    (cometly.DIALECT, cometly.ROUTERS, (cometly.BASE, "/cometly")),
    (gu1.DIALECT, gu1.ROUTERS, (gu1.BASE, "/gu1")),
)
"""The dialects, and where the paths and the documents of each begin."""
GRACE_SECONDS = 30
"""How long a stopping process waits for requests in progress."""
LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "export_pipeline.gateway.app.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "export_pipeline.gateway": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}


def _by_path(native_app: ASGIApp, dialects: Mapping[str, ASGIApp], root: str) -> ASGIApp:
    """Routes a request to the dialect of its path, and every other request to our own API.

    ``root`` is the path of ``EXPORT_PUBLIC_URL``, which a proxy has removed: ASGI wants it back in front of the path.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path = f"{scope.get('path', '')}/"
        found = (app for prefix, app in dialects.items() if path.startswith(f"{prefix}/"))
        if scope["type"] == "http" and root:
            scope["root_path"], scope["path"] = root, root + scope["path"]
        await next(found, native_app)(scope, receive, send)

    return route


def build(services: Services) -> ASGIApp:
    """The whole gateway on these services, which it closes when it stops."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        services.close()

    apps = [(build_app(dialect, services, *routers), prefixes) for dialect, routers, prefixes in _DIALECTS]
    dialects: dict[str, ASGIApp] = {prefix: app for app, prefixes in apps for prefix in prefixes}
    root = urlsplit(services.settings.public_url).path.rstrip("/")
    return RequestLog(_by_path(build_app(native.DIALECT, services, *native.ROUTERS, lifespan=lifespan), dialects, root))


def create() -> ASGIApp:
    """The gateway for the settings in the environment; a server process calls it."""
    return build(open_services(Settings.from_environment()))


def serve(settings: Settings, *, host: str, port: int, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT: then accept no new connections and finish the requests in progress.

    Errors are those of ``open_services``.
    """
    open_services(settings).close()  # report wrong settings here, in one line
    uvicorn.run(
        "export_pipeline.gateway.app:create",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_config=LOG_CONFIG,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, with only the type of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
        return json.dumps(line, ensure_ascii=False, default=str)


class RequestLog:
    """Wraps the gateway: logs one line a request, adds headers, answers HEAD as GET, catches every exception.

    Nothing personal is logged. A line has the route's template, never the path: a path may hold a token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._app(answer.scope, receive, answer.send)
        except Exception as error:  # noqa: BLE001 - its text may hold anything: it ends here
            facts = {"request_id": answer.id, **_type_and_place(error)}
            LOGGER.error("crashed", extra={"facts": facts})  # noqa: TRY400
            if answer.status is None:
                await JSONResponse({"message": "Internal server error."}, 500)(answer.scope, receive, answer.send)
        finally:
            LOGGER.info("request", extra={"facts": answer.facts()})


class _Answer:
    def __init__(self, scope: Scope, send: Send) -> None:
        self._method = scope["method"]
        self._is_head = self._method == "HEAD"
        # A copy: the server looks at its own scope to know that no body may follow.
        self.scope = {**scope, "method": "GET", HEAD: True} if self._is_head else scope
        self._send = send
        self._began = time.perf_counter()
        self.id = uuid.uuid4().hex
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        """Send a message, with our headers added; HEAD gets no body."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = {
                "X-Request-ID": self.id,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
                **self.scope.get("gateway.headers", {}),
            }
            headers = [(name.lower(), value) for name, value in message["headers"]]
            if self._is_head and (b"content-type", b"application/json") in headers:
                # Without its URLs, a body has another length.
                headers = [(name, value) for name, value in headers if name != b"content-length"]
            present = {name for name, _ in headers}
            ours = [(name.lower().encode(), value.encode()) for name, value in added.items()]
            message["headers"] = [*headers, *(header for header in ours if header[0] not in present)]
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)

    def facts(self) -> dict[str, Any]:
        """What the log records of the request."""
        route, caller = self.scope.get("route"), self.scope.get("gateway.caller")
        return {
            "request_id": self.id,
            "method": self._method,
            "route": getattr(route, "path", None),
            "status": self.status,
            "milliseconds": round((time.perf_counter() - self._began) * 1000, 1),
            "organization": getattr(caller, "organization_id", None),
            "key": getattr(caller, "id", None),
        }


def _type_and_place(error: BaseException) -> dict[str, Any]:
    """An exception's type and its places in the code, without its message or any value."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "exception": type(error).__qualname__,
        "raised_at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
