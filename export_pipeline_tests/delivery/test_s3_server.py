"""The launcher of the local S3 server: nothing is left running, nothing is told on the command line."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from export_pipeline.demo.s3_server import rclone_binary, serve_s3


def listens(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def test_ends_with_the_block_even_by_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def recording(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", recording)
    endpoint = ""

    def fail_inside() -> None:
        nonlocal endpoint
        with serve_s3(tmp_path, access_key_id="id", secret_access_key="very-secret") as endpoint:
            assert listens(endpoint)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert not listens(endpoint)
    assert "very-secret" not in " ".join(commands[0])


def test_keys_that_would_break_the_configuration(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="comma"),
        serve_s3(tmp_path, access_key_id="a,b", secret_access_key="x"),
    ):
        pass


def test_finds_the_wheels_binary() -> None:
    assert rclone_binary().is_file()
