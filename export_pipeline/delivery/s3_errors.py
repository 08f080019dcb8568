"""What errors of S3 mean in the vocabulary of failures.

What belongs here: telling what may pass from what will not, in words that hold no key and no signature.
What does not: recovering from them (``s3``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.exceptions as boto

from export_pipeline.failures import ExportFailure, FailureCode

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
    "NoSuchBucket": "The bucket does not exist: check EXPORT_STORE_URL",
    "NoSuchKey": "There is no such object: check the bucket's lifecycle rules and who else deletes",
    "AccessDenied": "Check that the AWS credentials may read and write at EXPORT_STORE_URL, and use the KMS key",
    "AllAccessDisabled": "The bucket is closed: check the AWS account",
    "InvalidAccessKeyId": "The access key is unknown there: check the AWS credentials and EXPORT_S3_ENDPOINT_URL",
    "SignatureDoesNotMatch": "Check the AWS secret key, and that no proxy rewrites requests",
    "RequestTimeTooSkewed": "Check this machine's clock",
    "PermanentRedirect": "The bucket is in another region: check AWS_REGION and AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "The bucket is in another region: check AWS_REGION and AWS_DEFAULT_REGION",
    "ExpiredToken": "The AWS session token has expired: renew it",
    "ExpiredTokenException": "The AWS session token has expired: renew it",
    "NotImplemented": "The store lacks this feature: check EXPORT_S3_SERVER_SIDE_ENCRYPTION",
    "KMS.NotFoundException": "Check EXPORT_S3_KMS_KEY_ID",
}

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
def translated() -> Iterator[None]:
    """Let no exception of botocore out but as an ``ExportFailure``."""
    try:
        yield
    except boto.ClientError as error:
        failure = _from_reply(error)
    except (boto.BotoCoreError, boto.HTTPClientError) as error:
        failure = _from_library(error)
    except OSError as error:
        failure = _unavailable(type(error).__name__)
    else:
        return
    raise failure from None


def _from_reply(error: boto.ClientError) -> ExportFailure:
    code = error_code(error)
    status = _status(error.response)
    passing = code in _PASSING_CODES or status == 429 or (status >= 500 and code != _NEVER_PASSING_CODE)
    if code == _BARE_400:
        return _unavailable(f"{code} on {error.operation_name}", _ADVICE["ExpiredToken"])
    advice = _ADVICE.get(code) or _ADVICE.get("AccessDenied" if status == 403 else "")
    if passing:
        return _unavailable(f"{code} on {error.operation_name}", advice)
    advice = advice or "Check EXPORT_STORE_URL, EXPORT_S3_ENDPOINT_URL and the AWS credentials"
    return ExportFailure(FailureCode.STORE_REFUSED, f"S3 refused ({code} on {error.operation_name}). {advice}.")


def _from_library(error: Exception) -> ExportFailure:
    name = type(error).__name__
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ExportFailure(
            FailureCode.STORE_REFUSED, f"No usable AWS credentials ({name}). Set AWS_ACCESS_KEY_ID or give a role."
        )
    if isinstance(error, _PASSING_ERRORS):
        return _unavailable(name)
    return ExportFailure(
        FailureCode.STORE_REFUSED,
        f"The S3 client refused ({name}). Check EXPORT_STORE_URL and the AWS config.",
    )


def _unavailable(what: str, advice: str | None = None) -> ExportFailure:
    advice = advice or "If it lasts, check EXPORT_S3_ENDPOINT_URL and the network"
    return ExportFailure(FailureCode.STORE_UNAVAILABLE, f"S3 did not answer as it should ({what}). {advice}.")


def _status(response: dict[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
