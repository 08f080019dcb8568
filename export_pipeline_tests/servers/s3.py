"""A real S3 server for the tests: rclone, started by the code that the demo uses.

It checks signatures and expiry. What it does not do: SSE, the part-size floor, If-None-Match, and it
forgets user metadata and Content-Disposition with a restart.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from export_pipeline.demo.s3_server import serve_s3
from export_pipeline.storage.s3_client import client_config


@dataclass(frozen=True)
class S3Server:
    """A running server; buckets are directories under ``directory``."""

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    directory: Path

    def environment(self) -> dict[str, str]:
        """What the AWS clients of a test must find in the environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self, *, secret_access_key: str | None = None) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=secret_access_key or self.secret_access_key,
            region_name="us-east-1",
            config=client_config(self.endpoint),
        )


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of one test."""

    name: str
    client: Any
    server: S3Server

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def keys(self) -> list[str]:
        return sorted(item["Key"] for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", []))

    def uploads(self) -> list[dict[str, Any]]:
        """Multipart uploads that nobody ended, each with its ``Key`` and ``UploadId``."""
        try:
            listed = self.client.list_multipart_uploads(Bucket=self.name)
        except self.client.exceptions.NoSuchUpload:  # rclone's answer where nothing was ever uploaded in parts
            return []
        return sorted(listed.get("Uploads", []), key=lambda upload: str(upload["Key"]))

    def files(self) -> list[str]:
        """What lies on the disk, the server's own temporary files included."""
        root = self.server.directory / self.name
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@contextmanager
def s3_server_process() -> Iterator[S3Server]:
    access_key_id, secret_access_key = f"AK{secrets.token_hex(8).upper()}", secrets.token_hex(20)
    with (
        tempfile.TemporaryDirectory(prefix="export-pipeline-s3-") as directory,
        serve_s3(Path(directory), access_key_id=access_key_id, secret_access_key=secret_access_key) as endpoint,
    ):
        yield S3Server(endpoint, access_key_id, secret_access_key, Path(directory))


@contextmanager
def fresh_bucket(server: S3Server) -> Iterator[S3Bucket]:
    name, client = f"test-{secrets.token_hex(6)}", server.client()
    client.create_bucket(Bucket=name)
    try:
        yield S3Bucket(name, client, server)
    finally:
        client.close()
