"""The gateway's one ASGI app: each dialect is an app of its own, with its own errors and its own OpenAPI document.

What belongs here: which path is whose, start and stop, health. What does not: any endpoint of a dialect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio.to_thread
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from export_pipeline.gateway import cometly, cometly_shapes, gu1, gu1_shapes, ours, sendgrid
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
    "cometly": (cometly_shapes.BASE, "/cometly"),
    "gu1": (gu1_shapes.BASE, "/gu1"),
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
    return RequestLog(_ByPath(ours.build(services, lifespan=lifespan), dialects, root))


def create() -> ASGIApp:
    """The gateway for the settings in the environment; what a server process calls.

    Raises:
        SettingsError, CatalogError, ExportFailure: as ``open_services``.
    """
    return build(open_services(Settings.from_environment()))
