"""What ``pyarrow.fs`` does not do well on S3: listing and deleting without leaving directory markers, ending uploads.

``pyarrow.fs`` writes an empty object named like the parent "directory" after each deletion; S3 keeps it for
ever, and some S3-compatible stores refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from export_pipeline.storage.s3_client import STAGING, build_client, translated, uploads_begun_until

CLOCKS_APART = timedelta(hours=1)
"""How far S3's clock may be ahead of ours."""


class S3Objects:
    """The objects under an ``s3://bucket/prefix`` URL."""

    def __init__(self, url: str, endpoint_url: str) -> None:
        parts = urlsplit(url)
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        with translated(STAGING):
            self._client = build_client(endpoint_url)

    def delete(self, key: str) -> None:
        """Delete one object; one that is not there is no error."""
        with translated(STAGING):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def delete_tree(self, prefix: str) -> None:
        """Delete every object under a prefix, and abort the uploads that are under way there."""
        with translated(STAGING):
            for page in self._pages(Prefix=f"{self._prefix}{prefix}/"):
                for item in page.get("Contents", []):
                    self._client.delete_object(Bucket=self._bucket, Key=item["Key"])
        self.abort_uploads(-CLOCKS_APART, prefix=f"{prefix}/")

    def trees(self, below: str = "") -> list[str]:
        """The first level of prefixes, below the root or a prefix."""
        root = f"{self._prefix}{below}/" if below else self._prefix
        with translated(STAGING):
            found = [
                item["Prefix"]
                for page in self._pages(Prefix=root, Delimiter="/")
                for item in page.get("CommonPrefixes", [])
            ]
        return [prefix.removeprefix(root).rstrip("/") for prefix in found]

    def written_at(self, prefix: str) -> datetime | None:
        """When an object under a prefix was last written."""
        with translated(STAGING):
            pages = self._pages(Prefix=f"{self._prefix}{prefix}/")
            return max((item["LastModified"] for page in pages for item in page.get("Contents", [])), default=None)

    def abort_uploads(self, older_than: timedelta, *, prefix: str = "") -> int:
        """Abort uploads that began longer ago: a killed process cannot end its own. How many."""
        newest, count = datetime.now(UTC) - older_than, 0
        with translated(STAGING):
            for key, upload in uploads_begun_until(newest, self._client, self._bucket, self._prefix + prefix):
                self._abort(key, upload)
                count += 1
        return count

    def _abort(self, key: str, upload: str) -> None:
        """Best effort: whoever writes may end it at the same moment."""
        with suppress(ClientError):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    def _pages(self, **options: str) -> Iterator[dict[str, Any]]:
        yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **options)
