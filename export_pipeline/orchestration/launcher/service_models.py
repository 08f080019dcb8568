"""What AWS's client library reads from its own files, read once for all children.

What belongs here: botocore's descriptions of S3. What does not: sessions, credentials, clients; those are each child's.

A run makes up to four S3 clients (delivered files, staging, Dagster's IO manager, Dagster's compute logs), each in a
session of its own, which parses 2 MB of JSON again: a third of a small run's processor time, when all of them are used.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError
from botocore.loaders import JSONFileLoader, Loader

_parsed: dict[str, Any] = {}


class SharedFileLoader(JSONFileLoader):  # type: ignore[misc]  # botocore has no types
    """Reads each file once. botocore hands one object to all clients of a session as well: nobody changes it."""

    def load_file(self, file_path: str) -> Any:
        """The file's content, None if there is no such file."""
        if file_path not in _parsed:
            _parsed[file_path] = super().load_file(file_path)
        return _parsed[file_path]


def share_service_models() -> None:
    """Read what an S3 client and an S3 resource need, for every session of this process and of its children."""
    Loader.FILE_LOADER_CLASS = SharedFileLoader
    # Made up and never used: a client connects when it is first asked for something.
    known = {"region_name": "us-east-1", "aws_access_key_id": "none", "aws_secret_access_key": "none"}
    with suppress(BotoCoreError):  # a profile that is not there: each run says so by itself
        boto3.session.Session().resource("s3", **known)
