"""The heartbeat of a running op: writes progress to the row, and learns of a cancel or of lost ownership."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from export_pipeline.failures import ExportCanceled, OwnershipLost
from export_pipeline.requests import ownership

LOG_SECONDS = 15.0
"""Progress goes into the event log, which people read, no more often; the row gets it with every heartbeat."""


@dataclass
class Heartbeat:
    """While this context is open, the row gets a heartbeat every ``seconds``.

    Once the row was canceled or taken from the run, ``check`` and ``report`` raise ``ExportCanceled`` or
    ``OwnershipLost``. Every loop of an op calls one of them at each batch and part.
    """

    database: sa.Engine
    request_id: int
    run_id: str
    seconds: float
    log: Callable[[str], None] = lambda _: None
    rows_total: int | None = None
    _logged_at: float = field(default_factory=time.monotonic)
    _values: dict[str, Any] = field(default_factory=dict)
    _stop: Exception | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="export-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._write()
            self.check()

    def report(self, rows_done: int) -> None:
        """Set the number of rows done so far in this stage."""
        with self._lock:
            self._values["rows_done"] = rows_done
        self.check()
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            total = "" if self.rows_total is None else f" of {self.rows_total:,}"
            self.log(f"{rows_done:,}{total} rows done.")

    def snapshot_taken(self, rows_total: int, snapshot_at: datetime) -> None:
        """Write the snapshot's number of rows and its instant (UTC)."""
        with self._lock:
            self._values |= {"rows_total": rows_total, "snapshot_at": snapshot_at}
        self.rows_total = rows_total
        self.log(f"The snapshot is open: {rows_total:,} rows to export.")
        self._write()
        self.check()

    def check(self) -> None:
        """Raise if the row says to stop."""
        if self._stop is not None:
            raise self._stop

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            self._write()

    def _write(self) -> None:
        with self._lock:
            values = dict(self._values)
        try:
            with self.database.begin() as connection:
                ownership.heartbeat(connection, self.request_id, run_id=self.run_id, values=values)
        except (ExportCanceled, OwnershipLost) as signal:
            self._stop = signal
        except Exception:  # noqa: BLE001 - a lost heartbeat must not end hours of work: the next may succeed
            return
