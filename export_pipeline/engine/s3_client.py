"""What staging and the store of delivered files both ask of S3: a client, and the uploads that nobody ended.

What belongs here: making the client, finding the uploads. What does not: aborting them, and what S3's errors mean
(``staging_s3``, delivery).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from export_pipeline.settings import aws_region


def client_config(endpoint_url: str = "") -> Config:
    """The botocore settings that every client is made with.

    Args:
        endpoint_url: an S3-compatible store's; empty for AWS.
    """
    return Config(
        # Without it boto3 presigns with SigV2 in us-east-1.
        signature_version="s3v4",
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        # S3-compatible stores seldom have a DNS name a bucket; AWS is giving path addressing up.
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        # Checksums are set by hand; the automatic ones use a trailer that not every store knows.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def build_client(endpoint_url: str = "") -> Any:
    """A boto3 S3 client with the credentials and the region of the environment.

    Raises:
        botocore.exceptions.BotoCoreError: the AWS configuration is unusable.
    """
    session = boto3.session.Session(region_name=aws_region())
    return session.client("s3", endpoint_url=endpoint_url or None, config=client_config(endpoint_url))


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
