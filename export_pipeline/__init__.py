"""A row in ``export_requests`` becomes files on S3 and a mail to every recipient.

The names of ``__all__`` are the public API: ``from export_pipeline import insert_request``. Each is imported at its
first use, so that ``import export_pipeline`` itself loads neither SQLAlchemy nor Dagster. Everything below is private.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export_pipeline.catalog.loader import CatalogError, load_catalog
    from export_pipeline.database.engine import create_engine
    from export_pipeline.database.enums import RequestStatus, Stage
    from export_pipeline.definitions import build_definitions
    from export_pipeline.failures import ExportFailure, FailureCode, Fault
    from export_pipeline.requests.models import RequestState, eta_seconds, insert_request, read_state
    from export_pipeline.settings import Settings, SettingsError

__all__ = [
    "CatalogError",
    "ExportFailure",
    "FailureCode",
    "Fault",
    "RequestState",
    "RequestStatus",
    "Settings",
    "SettingsError",
    "Stage",
    "build_definitions",
    "create_engine",
    "eta_seconds",
    "insert_request",
    "load_catalog",
    "read_state",
]

_MODULES = {
    "catalog.loader": ("CatalogError", "load_catalog"),
    "database.engine": ("create_engine",),
    "database.enums": ("RequestStatus", "Stage"),
    "definitions": ("build_definitions",),
    "failures": ("ExportFailure", "FailureCode", "Fault"),
    "requests.models": ("RequestState", "eta_seconds", "insert_request", "read_state"),
    "settings": ("Settings", "SettingsError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
