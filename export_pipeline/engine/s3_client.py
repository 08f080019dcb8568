"""The only way to an S3 client: staging, the store, its links and Dagster's step outputs all use ``build_client``.

A client that is made elsewhere would lack the config, and sign links for AWS' global host, which newer regions and
young buckets do not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from export_pipeline.settings import aws_region

ATTEMPTS = 5
"""Of each request, the first one included."""
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")


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
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={
            # S3-compatible stores seldom have a DNS name a bucket. On AWS, "auto" presigns for the global host
            # bucket.s3.amazonaws.com in every region: only "virtual" names the region (boto3 issues 2989 and 3015).
            "addressing_style": "path" if endpoint_url else "virtual",
            "us_east_1_regional_endpoint": "regional",
        },
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
    client = session.client("s3", endpoint_url=endpoint_url or None, config=client_config(endpoint_url))
    found: str = client.meta.endpoint_url
    if not endpoint_url and not is_aws(found):
        # AWS_ENDPOINT_URL_S3 or the AWS profile names an S3-compatible store.
        return session.client("s3", config=client_config(found))
    return client


def is_aws(endpoint_url: str) -> bool:
    """Whether this is AWS, and not a store that speaks like it."""
    return (urlsplit(endpoint_url).hostname or "").endswith(_AWS)


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
