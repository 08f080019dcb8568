"""The pulse of a running op: it writes progress and heartbeat, and hears of cancel and lost ownership."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from export_pipeline.failures import ExportCanceled, OwnershipLost
from export_pipeline.requests import ownership

LOG_SECONDS = 15.0
"""The event log is for people: it hears of progress so often at most; the row hears of it with every heartbeat."""
Log = Callable[[str], None]


class Heartbeat:
    """While this context is open, the row gets a heartbeat every ``seconds``.

    ``check`` raises ``ExportCanceled`` or ``OwnershipLost`` once the row says so; ``report`` does too,
    and every loop of an op calls one of them at each batch and part.
    """

    def __init__(
        self,
        database: sa.Engine,
        request_id: int,
        run_id: str,
        seconds: float,
        *,
        log: Log = lambda _: None,
        rows_total: int | None = None,
    ) -> None:
        self._database = database
        self._request_id = request_id
        self._run_id = run_id
        self._seconds = seconds
        self._log = log
        self._logged_at = time.monotonic()
        self._rows_total = rows_total
        self._values: dict[str, Any] = {}
        self._stop: Exception | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="export-pulse", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._write()
            self.check()

    def report(self, rows_done: int) -> None:
        """Rows done so far in this stage."""
        with self._lock:
            self._values["rows_done"] = rows_done
        self.check()
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            total = "" if self._rows_total is None else f" of {self._rows_total:,}"
            self._log(f"{rows_done:,}{total} rows done.")

    def snapshot_taken(self, rows_total: int, snapshot_at: datetime) -> None:
        """The snapshot is open: its rows are counted."""
        with self._lock:
            self._values |= {"rows_total": rows_total, "snapshot_at": snapshot_at}
        self._rows_total = rows_total
        self._log(f"The snapshot is open: {rows_total:,} rows to export.")
        self._write()
        self.check()

    def check(self) -> None:
        """Raise what the row said, if it says to stop."""
        if self._stop is not None:
            raise self._stop

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            self._write()

    def _write(self) -> None:
        with self._lock:
            values = dict(self._values)
        try:
            with self._database.begin() as connection:
                ownership.heartbeat(connection, self._request_id, run_id=self._run_id, values=values)
        except (ExportCanceled, OwnershipLost) as signal:
            self._stop = signal
        except Exception:  # noqa: BLE001 - whatever it is, the thread must live on
            # One heartbeat that does not get through is no reason to give up hours of work: the next may.
            return
