"""What a dialect is: its errors' shape and statuses, and a FastAPI app that answers nothing in any other shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from limits.errors import StorageError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.gateway.services import Services

VERSION = "1.0"
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
    """An answer that is no success: ``message`` for people, ``code`` for programs, the ``field`` at fault."""

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
    """How one of the APIs speaks."""

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
    """What a caller without a valid key is told."""
    forbidden: str
    too_many: str
    not_found: str = "Not found."
    names: Mapping[str, str] = field(default_factory=dict)
    """What this dialect calls columns of ``export_requests``, where it is another name."""
    page: Callable[[Request, ApiError], Response | None] = lambda _request, _refusal: None
    """The answer for a person with a browser; None: the caller is a program."""

    def refusal(self, failure: ExportFailure) -> ApiError:
        """A failure of the pipeline's vocabulary as this dialect tells it."""
        if failure.code is FailureCode.PERMISSION_DENIED:
            return ApiError(403, self.forbidden, code=failure.code)
        if failure.fault is Fault.REQUESTER:
            name = re.split(r"[.\[:]", failure.field or "")[0]
            called = self.names.get(name, name)
            return ApiError(self.invalid_status, self.worded(failure.message), field=called or None, code=failure.code)
        if failure.fault is Fault.TRANSIENT:
            return ApiError(503, "Something that this needs cannot be reached; try again.", code=failure.code)
        return ApiError(500, "This failed on our side; the operators have to look at it.", code=failure.code)

    def worded(self, message: str) -> str:
        """A message of the pipeline in this dialect's names."""
        return re.sub(r"\b[a-z]+(_[a-z]+)+\b", lambda found: self.names.get(found[0], found[0]), message)

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """The errors that an endpoint may answer with, for its OpenAPI document."""
        listed = sorted({*statuses, 401, 429, 500, 503})
        return {status: {"model": self.error, "description": HTTPStatus(status).phrase} for status in listed}


def build_app(dialect: Dialect, services: Services, **options: Any) -> FastAPI:
    """An app whose every error, an unknown path's included, has the dialect's shape."""
    base = "" if dialect.name == "ours" else f"/{dialect.name}"
    app = FastAPI(
        title=dialect.title,
        description=dialect.description,
        version=VERSION,
        docs_url=f"{base}/docs",
        redoc_url=None,
        openapi_url=f"{base}/openapi.json",
        # A path with a slash too much is another path: no client is to be redirected with its key.
        redirect_slashes=False,
        **options,
    )
    app.state.services = services
    app.state.dialect = dialect

    # All asynchronous, so that an answer that says no waits for no thread.
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)  # noqa: S101 - for the type checker
        page = dialect.page(request, error)
        return page or JSONResponse(dialect.shape(error), error.status, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ExportFailure)  # noqa: S101 - for the type checker
        return await refused(request, dialect.refusal(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
        return await refused(request, first_problem(error.errors(), dialect.invalid_status))

    async def not_served(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
        message = dialect.not_found if error.status_code == 404 else str(error.detail)
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return await refused(request, ApiError(error.status_code, message, headers=headers))

    async def unreachable(request: Request, _error: Exception) -> Response:
        return await refused(request, ApiError(503, "A database that this needs cannot be reached; try again."))

    async def crashed(request: Request, _error: Exception) -> Response:
        message = "This failed on our side; the operators have to look at it."
        return await refused(request, ApiError(500, message, code="internal_error"))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(ExportFailure, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, not_served)
    app.add_exception_handler(sa.exc.OperationalError, unreachable)
    app.add_exception_handler(sa.exc.TimeoutError, unreachable)
    app.add_exception_handler(StorageError, unreachable)
    app.add_exception_handler(Exception, crashed)
    return app


def _allowed(request: Request) -> str:
    """All methods that the path has; a router's own answer names those of the first route alone."""
    bare = {name: request.scope[name] for name in ("type", "path", "root_path", "headers", "query_string")}
    routes = request.app.router.routes
    found = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**bare, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(["GET", "HEAD", *found[1:]] if "GET" in found else found)


def first_problem(errors: Any, status: int) -> ApiError:
    """The first thing that is wrong with a body or with parameters; never the value itself."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    name = ".".join(path)
    return ApiError(status, f"{name}: {first['msg']}." if name else f"{first['msg']}.", field=path[0] if path else None)


def dialect_of(request: Request) -> Dialect:
    """The dialect of the app that answers."""
    dialect: Dialect = request.app.state.dialect
    return dialect


def strip_default_errors(app: FastAPI) -> None:
    """Leave FastAPI's own 422 out of the document: no app here answers in that shape."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _strip(make())
        return make()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI has it, Extending OpenAPI


def _strip(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", {})):
                del operation["responses"]["422"]
    schemas = document.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
