"""The server process: uvicorn around the app, its log as JSON, its stop graceful.

What belongs here: how it is served. What does not: what is served (``app``).
"""

from __future__ import annotations

from typing import Any

import uvicorn

from export_pipeline.gateway.services import open_services
from export_pipeline.settings import Settings

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
