"""The one way to S3: how a client is made, the objects below a prefix, and what errors of S3 mean.

The store, staging, links and Dagster's step outputs all use ``build_client``. A client that is made elsewhere lacks the
configuration, and signs links for AWS' global host, which newer regions and young buckets do not answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
from botocore.config import Config

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.settings import aws_region

if TYPE_CHECKING:
    import pyarrow.fs

ATTEMPTS = 5
"""Of each request, the first one included."""
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")


def client_config(endpoint_url: str = "") -> Config:
    """The botocore configuration of every client; ``endpoint_url`` is that of an S3-compatible store, empty for AWS."""
    return Config(
        # Without it boto3 presigns with SigV2 in us-east-1.
        signature_version="s3v4",
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={
            # S3-compatible stores seldom have a DNS name for each bucket. On AWS, "auto" presigns for the global host
            # bucket.s3.amazonaws.com in every region: only "virtual" names the region (boto3 issues 2989 and 3015).
            "addressing_style": "path" if endpoint_url else "virtual",
            "us_east_1_regional_endpoint": "regional",
        },
        # We set checksums ourselves; the automatic ones use a trailer that not every store knows.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def build_client(endpoint_url: str = "") -> Any:
    """A boto3 S3 client with the environment's credentials and region; a ``BotoCoreError`` if they are unusable."""
    session = boto3.session.Session(region_name=aws_region())
    client = session.client("s3", endpoint_url=endpoint_url or None, config=client_config(endpoint_url))
    found: str = client.meta.endpoint_url
    if not endpoint_url and not is_aws(found):
        # AWS_ENDPOINT_URL_S3 or the AWS profile names an S3-compatible store.
        return session.client("s3", config=client_config(found))
    return client


def is_aws(endpoint_url: str) -> bool:
    """Whether this is AWS, not an S3-compatible store."""
    return (urlsplit(endpoint_url).hostname or "").endswith(_AWS)


def arrow_filesystem(endpoint_url: str) -> pyarrow.fs.S3FileSystem:
    """Arrow's file system on S3, which streams multipart uploads by itself."""
    import pyarrow.fs

    options: dict[str, str] = {}
    if endpoint_url:
        # The AWS SDK's default checksums come as a trailer, to which S3-compatible stores answer 411.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        endpoint = urlsplit(endpoint_url)
        options = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    return pyarrow.fs.S3FileSystem(region=aws_region(), allow_bucket_creation=False, **options)


@dataclass(frozen=True)
class Place:
    """A use of S3: the codes of its failures, and the setting that names it."""

    unavailable: FailureCode
    refused: FailureCode
    setting: str


STORE = Place(FailureCode.STORE_UNAVAILABLE, FailureCode.STORE_REFUSED, "EXPORT_STORE_URL")
STAGING = Place(FailureCode.STAGING_UNAVAILABLE, FailureCode.STAGING_REFUSED, "EXPORT_STAGING_URL")


class Bucket:
    """The objects below a prefix of a bucket; keys are relative to the prefix. Methods raise ``ExportFailure``."""

    def __init__(self, client: Any, name: str, prefix: str, place: Place) -> None:
        self.client = client
        self.name = name
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._place = place

    def at(self, key: str) -> dict[str, Any]:
        """The bucket and the full key, as arguments of a boto3 call."""
        return {"Bucket": self.name, "Key": self.prefix + key}

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""
        with translated(self._place):
            self.client.delete_object(**self.at(key))

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin with ``prefix``."""
        for item in self._listed("Contents", Prefix=self.prefix + prefix):
            yield item["Key"].removeprefix(self.prefix)

    def trees(self, below: str = "") -> Iterator[str]:
        """The first pieces of all keys, each once, at the root or below a prefix."""
        root = f"{self.prefix}{below}/" if below else self.prefix
        for item in self._listed("CommonPrefixes", Prefix=root, Delimiter="/"):
            yield item["Prefix"].removeprefix(root).rstrip("/")

    def written_at(self, prefix: str) -> datetime | None:
        """When an object whose key begins with ``prefix`` was last written (UTC), None if there is none."""
        items = self._listed("Contents", Prefix=self.prefix + prefix)
        return max((item["LastModified"] for item in items), default=None)

    def abort_uploads(self, older_than: timedelta, *, prefix: str = "") -> int:
        """Abort multipart uploads that began longer ago: their parts cost money until then. Returns how many."""
        newest, count = datetime.now(UTC) - older_than, 0
        pages = self.client.get_paginator("list_multipart_uploads")
        with translated(self._place):
            try:
                for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix):
                    for upload in page.get("Uploads", []):
                        if upload["Initiated"] <= newest:
                            self.abort(upload["Key"], upload["UploadId"])
                            count += 1
            except boto.ClientError as error:
                # rclone's answer for a bucket that never had one.
                if error_code(error) != "NoSuchUpload":
                    raise
        return count

    def abort(self, full_key: str, upload: str) -> None:
        """Abort one upload. Best effort: its writer may end it at the same moment, and the janitor comes again."""
        with suppress(ExportFailure), translated(self._place):
            self.client.abort_multipart_upload(Bucket=self.name, Key=full_key, UploadId=upload)

    def _listed(self, part: str, **options: str) -> Iterator[dict[str, Any]]:
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, **options))
        while True:
            with translated(self._place):
                page = next(pages, None)
            if page is None:
                return
            yield from page.get(part, [])


# What errors of S3 mean as failures. No message holds a key or a signature.

_TRANSIENT_CODES = frozenset({
    "ExpiredToken", "ExpiredTokenException", "IncompleteBody", "InternalError", "NoSuchUpload", "OperationAborted",
    "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
})  # fmt: skip
"""4xx that may pass: throttling, a damaged body, an upload that the janitor aborted, a token renewed elsewhere."""
_BARE_400 = "400"
"""The reply to a HEAD has no body: this is all that S3 says there of an expired token (HADOOP-18353)."""
_PERMANENT_5XX = "NotImplemented"
"""The one 5xx of S3 for which a retry never helps."""
_ADVICE = {
    "NoSuchBucket": "The bucket does not exist: check {setting}",
    "NoSuchKey": "The object does not exist: check the bucket's lifecycle rules and who else deletes",
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
_TRANSIENT_ERRORS = (
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


@contextmanager
def translated(place: Place = STORE) -> Iterator[None]:
    """Raise every exception of botocore as an ``ExportFailure``."""
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
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    what = f"{code} on {error.operation_name}"
    if code == _BARE_400:
        return _unavailable(what, place, _ADVICE["ExpiredToken"])
    advice = _advice(code, status, error.operation_name)
    if code in _TRANSIENT_CODES or status == 429 or (status >= 500 and code != _PERMANENT_5XX):
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
            place.refused, f"No usable AWS credentials ({name}). Set AWS_ACCESS_KEY_ID or attach a role."
        )
    if isinstance(error, _TRANSIENT_ERRORS):
        return _unavailable(name, place)
    return ExportFailure(place.refused, f"The S3 client refused ({name}). Check {place.setting} and the AWS config.")


def _unavailable(what: str, place: Place, advice: str | None = None) -> ExportFailure:
    advice = (advice or "If it lasts, check EXPORT_S3_ENDPOINT_URL and the network").format(setting=place.setting)
    return ExportFailure(place.unavailable, f"S3 did not answer as expected ({what}). {advice}.")
