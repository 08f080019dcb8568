"""Multipart uploads that somebody began on S3 and has not ended: staging and the delivered files both leave some.

What belongs here: finding them. What does not: aborting them, and what S3's errors mean (``staging_s3``, delivery).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError


def uploads_begun_until(instant: datetime, client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and upload id of each upload under a prefix that began at this instant (aware) or before.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: S3 could not be asked, or refused.
    """
    pages = client.get_paginator("list_multipart_uploads")
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                if upload["Initiated"] <= instant:
                    yield upload["Key"], upload["UploadId"]
    except ClientError as error:
        # rclone's answer for a bucket that never had one.
        if error.response["Error"]["Code"] != "NoSuchUpload":
            raise
