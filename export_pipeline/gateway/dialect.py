"""What the dialects share: the shape and status of errors, and a FastAPI app that answers in no other shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from limits.errors import StorageError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.gateway.services import Services

VERSION = "1.0"
HEAD = "gateway.head"
"""In the scope of a HEAD request: it creates no links and counts nothing."""
_FAILED = "This failed on our side; the operators have to look at it."
_STATUS_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    429: "too_many_requests",
    503: "unavailable",
}


class ApiError(Exception):
    """An error answer: ``message`` for people, ``code`` for programs, the ``field`` at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code or _STATUS_CODES.get(status, "invalid_request")
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Dialect:
    """The conventions of one of the APIs."""

    name: str
    title: str
    description: str
    shape: Callable[[ApiError], dict[str, Any]]
    """The body of an error."""
    error: type[BaseModel]
    """The same as a model, for the OpenAPI document."""
    invalid_status: int
    """Of a request that breaks a rule."""
    unauthenticated: str
    """The message for a caller without a valid key."""
    forbidden: str
    too_many: str
    not_found: str = "Not found."
    names: Mapping[str, str] = field(default_factory=dict)
    """This dialect's names of columns of ``export_requests``, where they differ."""
    page: Callable[[Request, ApiError], Response | None] = lambda _request, _error: None
    """The answer for a person with a browser; None: the caller is a program."""

    def error_of(self, failure: ExportFailure) -> ApiError:
        """A failure of the pipeline as an error of this dialect."""
        if failure.code is FailureCode.PERMISSION_DENIED:
            return ApiError(403, self.forbidden, code=failure.code)
        if failure.fault is Fault.REQUESTER:
            column = re.split(r"[.\[:]", failure.field or "")[0]
            name = self.names.get(column, column) or None
            return ApiError(self.invalid_status, self.translate(failure.message), field=name, code=failure.code)
        if failure.fault is Fault.TRANSIENT:
            return ApiError(503, "A service that this needs cannot be reached; try again.", code=failure.code)
        return ApiError(500, _FAILED, code=failure.code)

    def translate(self, message: str) -> str:
        """A message of the pipeline with this dialect's names."""
        return re.sub(r"\b[a-z]+(_[a-z]+)+\b", lambda found: self.names.get(found[0], found[0]), message)

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """The errors that an endpoint may answer with, for its OpenAPI document."""
        listed = sorted({*statuses, 401, 429, 500, 503})
        return {status: {"model": self.error, "description": HTTPStatus(status).phrase} for status in listed}


class _App(FastAPI):
    """Leaves FastAPI's own 422 out of the OpenAPI document: no app here answers in that shape."""

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422", {})):
                        del operation["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                document.get("components", {}).get("schemas", {}).pop(name, None)
        return super().openapi()


def build_app(dialect: Dialect, services: Services, *routers: APIRouter, **options: Any) -> FastAPI:
    """An app in which every error, also that of an unknown path, has the dialect's shape."""
    base = "" if dialect.name == "native" else f"/{dialect.name}"
    app = _App(
        title=dialect.title,
        description=dialect.description,
        version=VERSION,
        docs_url=f"{base}/docs",
        redoc_url=None,
        openapi_url=f"{base}/openapi.json",
        # A path with an extra slash is another path: a client must not be redirected with its key.
        redirect_slashes=False,
        **options,
    )
    app.state.services = services
    app.state.dialect = dialect
    for router in routers:
        app.include_router(router)

    # All asynchronous, so that an error answer waits for no thread.
    @app.exception_handler(ApiError)
    async def answer(request: Request, error: ApiError) -> Response:
        return dialect.page(request, error) or JSONResponse(dialect.shape(error), error.status, error.headers)

    @app.exception_handler(ExportFailure)
    async def failed(request: Request, failure: ExportFailure) -> Response:
        return await answer(request, dialect.error_of(failure))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await answer(request, first_problem(error.errors(), dialect.invalid_status))

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        message = dialect.not_found if error.status_code == 404 else str(error.detail)
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return await answer(request, ApiError(error.status_code, message, headers=headers))

    @app.exception_handler(sa.exc.OperationalError)
    @app.exception_handler(sa.exc.TimeoutError)
    @app.exception_handler(StorageError)
    async def unreachable(request: Request, _error: Exception) -> Response:
        return await answer(request, ApiError(503, "A database that this needs cannot be reached; try again."))

    @app.exception_handler(Exception)
    async def crashed(request: Request, _error: Exception) -> Response:
        return await answer(request, ApiError(500, _FAILED, code="internal_error"))

    return app


def _allowed(request: Request) -> str:
    """All methods of the path; a router's own answer names only those of the first route."""
    bare = {name: request.scope[name] for name in ("type", "path", "root_path", "headers", "query_string")}
    routes = request.app.router.routes
    found = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**bare, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(["GET", "HEAD", *found[1:]] if "GET" in found else found)


def first_problem(errors: Any, status: int) -> ApiError:
    """The first problem of a body or of parameters; never the value itself."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    name = ".".join(path)
    return ApiError(status, f"{name}: {first['msg']}." if name else f"{first['msg']}.", field=path[0] if path else None)


def dialect_of(request: Request) -> Dialect:
    """The dialect of the app that answers."""
    dialect: Dialect = request.app.state.dialect
    return dialect


def instant_text(value: datetime) -> str:
    """As SendGrid and Cometly write instants: 2021-02-01T12:35:22Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
