"""The gateway's one ASGI app: each dialect is an app of its own, with its own errors and its own OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from export_pipeline.gateway.dialects import cometly, gu1, native, sendgrid
from export_pipeline.gateway.logs import RequestLog
from export_pipeline.gateway.services import THREADS, Services, open_services
from export_pipeline.settings import Settings

_BUILDERS: Mapping[str, Callable[[Services], FastAPI]] = {
    "sendgrid": sendgrid.build,
    "cometly": cometly.build,
    "gu1": gu1.build,
}
_PREFIXES: Mapping[str, Sequence[str]] = {
    "sendgrid": ("/v3", "/sendgrid"),
    "cometly": (cometly.BASE, "/cometly"),
    "gu1": (gu1.BASE, "/gu1"),
}
"""Where each dialect's paths begin; its documents are below its own name."""


class _ByPath:
    """Hands a request to the dialect that its path is of; every other one is ours.

    ``root`` is the path of ``EXPORT_PUBLIC_URL``, which a proxy has taken off: ASGI wants it back in front of the path.
    """

    def __init__(self, ours_app: ASGIApp, dialects: Mapping[str, ASGIApp], root: str) -> None:
        self._ours = ours_app
        self._dialects = dialects
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = f"{scope.get('path', '')}/"
        found = (app for prefix, app in self._dialects.items() if path.startswith(f"{prefix}/"))
        if scope["type"] == "http" and self._root:
            scope["root_path"], scope["path"] = self._root, self._root + scope["path"]
        await next(found, self._ours)(scope, receive, send)


def build(services: Services) -> ASGIApp:
    """The whole gateway on these services, which it closes when it stops."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        services.close()

    apps = {name: make(services) for name, make in _BUILDERS.items()}
    dialects: dict[str, ASGIApp] = {prefix: apps[name] for name in apps for prefix in _PREFIXES[name]}
    root = urlsplit(services.settings.public_url).path.rstrip("/")
    return RequestLog(_ByPath(native.build(services, lifespan=lifespan), dialects, root))


def create() -> ASGIApp:
    """The gateway for the settings in the environment; what a server process calls.

    Raises:
        SettingsError, CatalogError, ExportFailure: as ``open_services``.
    """
    return build(open_services(Settings.from_environment()))


# The server process: uvicorn around the app, its log as JSON, its stop graceful.


GRACE_SECONDS = 30
"""How long requests that are under way may take to end once the process is told to stop."""
LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "export_pipeline.gateway.logs.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "export_pipeline.gateway": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}


def serve(settings: Settings, *, host: str, port: int, workers: int = 1) -> None:
    """Serve until told to stop (SIGTERM, SIGINT): no new connections then, and those under way are ended in peace.

    Raises:
        SettingsError, CatalogError, ExportFailure: as ``open_services``.
    """
    open_services(settings).close()  # what is wrong with the settings is said here, in one line
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
