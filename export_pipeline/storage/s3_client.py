"""The only way to an S3 client: staging, the store, its links and Dagster's step outputs all use ``build_client``.

A client that is made elsewhere would lack the config, and sign links for AWS' global host, which newer regions and
young buckets do not answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
from botocore.config import Config
from botocore.exceptions import ClientError

from export_pipeline.failures import ExportFailure, FailureCode
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


# What errors of S3 mean in the vocabulary of failures, in words that hold no key and no signature.


@dataclass(frozen=True)
class Place:
    """What S3 is used for: how its failures are called, and the setting that names it."""

    unavailable: FailureCode
    refused: FailureCode
    setting: str


STORE = Place(FailureCode.STORE_UNAVAILABLE, FailureCode.STORE_REFUSED, "EXPORT_STORE_URL")
STAGING = Place(FailureCode.STAGING_UNAVAILABLE, FailureCode.STAGING_REFUSED, "EXPORT_STAGING_URL")
_PASSING_CODES = frozenset({
    "ExpiredToken", "ExpiredTokenException", "IncompleteBody", "InternalError", "NoSuchUpload", "OperationAborted",
    "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
})  # fmt: skip
"""4xx that may pass: throttling, a damaged body, an upload that a janitor swept, a token that is renewed elsewhere."""
_BARE_400 = "400"
"""A HEAD's answer has no body: this is all that S3 says there of an expired token (HADOOP-18353)."""
_NEVER_PASSING_CODE = "NotImplemented"
"""The one 5xx of S3 that says the same however often it is asked."""
_ADVICE = {
    "NoSuchBucket": "The bucket does not exist: check {setting}",
    "NoSuchKey": "There is no such object: check the bucket's lifecycle rules and who else deletes",
    "AccessDenied": "Check that the AWS credentials may read and write at {setting}, and use the KMS key",
    "AllAccessDisabled": "The bucket is closed: check the AWS account",
    "InvalidAccessKeyId": "The access key is unknown there: check the AWS credentials and EXPORT_S3_ENDPOINT_URL",
    "SignatureDoesNotMatch": "Check the AWS secret key, and that no proxy rewrites requests",
    "RequestTimeTooSkewed": "Check this machine's clock",
    "PermanentRedirect": "The bucket is in another region: check AWS_REGION and AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "The bucket is in another region: check AWS_REGION and AWS_DEFAULT_REGION",
    "ExpiredToken": "The AWS session token has expired: renew it",
    "ExpiredTokenException": "The AWS session token has expired: renew it",
    "NotImplemented": "The store lacks this feature: check EXPORT_S3_SERVER_SIDE_ENCRYPTION",
}
_DEFAULT_ADVICE = "Check {setting}, EXPORT_S3_ENDPOINT_URL and the AWS credentials"
_ENCRYPTION_ADVICE = "Check EXPORT_S3_SERVER_SIDE_ENCRYPTION and EXPORT_S3_KMS_KEY_ID, and that the store has the key"
_WRITES = frozenset({"PutObject", "CreateMultipartUpload"})
_PASSING_ERRORS = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
)
_CREDENTIAL_ERRORS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)


def error_code(error: boto.ClientError) -> str:
    """The service's error code; for a HEAD, which has no body, its status."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"[A-Za-z0-9.]{1,64}", code) else "unknown"


def is_missing(error: boto.ClientError) -> bool:
    """Whether the error says that there is no such object."""
    return error_code(error) in ("404", "NoSuchKey", "NotFound")


@contextmanager
def translated(place: Place = STORE) -> Iterator[None]:
    """Let no exception of botocore out but as an ``ExportFailure``."""
    try:
        yield
    except boto.ClientError as error:
        failure = _from_reply(error, place)
    except (boto.BotoCoreError, boto.HTTPClientError) as error:
        failure = _from_library(error, place)
    except OSError as error:
        failure = _unavailable(type(error).__name__, place)
    else:
        return
    raise failure from None


def _from_reply(error: boto.ClientError, place: Place) -> ExportFailure:
    code = error_code(error)
    status = _status(error.response)
    what = f"{code} on {error.operation_name}"
    if code == _BARE_400:
        return _unavailable(what, place, _ADVICE["ExpiredToken"])
    advice = _advice(code, status, error.operation_name)
    if code in _PASSING_CODES or status == 429 or (status >= 500 and code != _NEVER_PASSING_CODE):
        return _unavailable(what, place, advice)
    advice = (advice or _DEFAULT_ADVICE).format(setting=place.setting)
    return ExportFailure(place.refused, f"S3 refused ({what}). {advice}.")


def _advice(code: str, status: int, operation: str) -> str | None:
    if code in _ADVICE:
        return _ADVICE[code]
    # AWS has some ten codes of KMS. Ceph answers InvalidArgument to a key that it does not have; nothing else that we
    # send with an object can be wrong.
    if re.search(r"KMS|Kms|Encryption", code) or (code == "InvalidArgument" and operation in _WRITES):
        return _ENCRYPTION_ADVICE
    return _ADVICE["AccessDenied"] if status == 403 else None


def _from_library(error: Exception, place: Place) -> ExportFailure:
    name = type(error).__name__
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ExportFailure(
            place.refused, f"No usable AWS credentials ({name}). Set AWS_ACCESS_KEY_ID or give a role."
        )
    if isinstance(error, _PASSING_ERRORS):
        return _unavailable(name, place)
    return ExportFailure(place.refused, f"The S3 client refused ({name}). Check {place.setting} and the AWS config.")


def _unavailable(what: str, place: Place, advice: str | None = None) -> ExportFailure:
    advice = (advice or "If it lasts, check EXPORT_S3_ENDPOINT_URL and the network").format(setting=place.setting)
    return ExportFailure(place.unavailable, f"S3 did not answer as it should ({what}). {advice}.")


def _status(response: dict[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
