"""One line of JSON a request, without anything personal, and the end of whatever nobody caught.

A line has the route's template, never the path: a path may hold a token.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = logging.getLogger("export_pipeline.gateway")
HEAD = "gateway.head"
"""In the scope of a request whose answer is its headers alone: whatever it asks for, nothing is minted or counted."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON; an exception is told by its type alone."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record."""
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
    """Wraps the gateway: counts the time, adds headers, logs, answers HEAD as GET, and lets no exception out."""

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
            LOGGER.error("crashed", extra={"facts": {"request_id": answer.id, **_told(error)}})  # noqa: TRY400
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
        """Pass a message on; headers get what the request came to."""
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
            message["headers"] = [
                *headers,
                *((n.lower().encode(), v.encode()) for n, v in added.items() if n.lower().encode() not in present),
            ]
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)

    def facts(self) -> dict[str, Any]:
        """What the log says of it."""
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


def _told(error: BaseException) -> dict[str, Any]:
    """An exception by its type and its places in the code, without its message or any value."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "exception": type(error).__qualname__,
        "raised_at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
