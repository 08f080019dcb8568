"""The server's log: what it and its children print, in the instance's directory.

What belongs here: writing and rotating. What does not: what a step prints; Dagster captures that itself.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from export_pipeline.orchestration.launcher.protocol import private_directory

MAX_BYTES = 10_000_000
NAME = "warm-launcher.log"


class Log:
    """``stdout`` and ``stderr`` of this process and its children.

    Not inherited from the launcher: the server outlives it, and would hold its pipes open.
    """

    def __init__(self, home: Path) -> None:
        directory = home if os.access(home, os.W_OK) else private_directory()  # a container may mount it read-only
        self.path = directory / NAME
        self._redirect()

    def _redirect(self) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)

    def rotate(self) -> None:
        """Keep one full file and one that grows."""
        if os.fstat(2).st_size > MAX_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
            self._redirect()

    def write(self, text: str) -> None:
        """One line of the server's own."""
        sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} warm launcher {os.getpid()}: {text}\n")
        sys.stderr.flush()
