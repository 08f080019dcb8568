"""The rules of a request's files: format, compression, options, size."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from export_pipeline.catalog.types import COMPRESSIONS, FORMATS, Compression, Format
from export_pipeline.failures import FailureCode, abbreviate, invalid_option
from export_pipeline.requests.models import RequestInput
from export_pipeline.requests.validation import refusal

BYTES_PER_MB = 1_000_000
_SELF_COMPRESSED: tuple[Format, ...] = ("xlsx", "parquet")


class Options(BaseModel, frozen=True, extra="forbid", strict=True, hide_input_in_errors=True):
    """``export_requests.options``: how the file is written. Unknown names are refused."""

    time_zone: str | None = Field(
        default=None, description="IANA zone of written timestamps, or `organization`; default UTC"
    )
    guard_formulas: bool = Field(
        default=True, description="CSV: text that a spreadsheet would run gets a leading apostrophe"
    )
    csv_profile: Literal["rfc4180", "excel"] = Field(default="rfc4180", description="`excel` adds a byte order mark")
    csv_delimiter: Literal[",", ";", "\t", "|"] = Field(default=",", description="CSV: between the values")
    csv_decimal_mark: Literal[".", ","] = Field(default=".", description="CSV: in numbers with a fraction")


def format_of(request: RequestInput) -> Format:
    """The format (``unknown_format``)."""
    for known in FORMATS:
        if request.format == known:
            return known
    message = f"{abbreviate(request.format)} is not one of {', '.join(FORMATS)}."
    raise refusal(FailureCode.UNKNOWN_FORMAT, "format", message)


def compression_of(request: RequestInput, file_format: Format) -> Compression:
    """The compression; if the request names none, gzip for ndjson and none for the others (``unknown_compression``)."""
    if request.compression is None:
        return "gzip" if file_format == "ndjson" else "none"
    for known in COMPRESSIONS:
        if request.compression == known:
            if known == "gzip" and file_format in _SELF_COMPRESSED:
                message = f"{file_format} files are compressed already; use none or leave it out."
                raise refusal(FailureCode.UNKNOWN_COMPRESSION, "compression", message)
            return known
    message = f"{abbreviate(request.compression)} is not one of {', '.join(COMPRESSIONS)}."
    raise refusal(FailureCode.UNKNOWN_COMPRESSION, "compression", message)


def options_of(request: RequestInput) -> Options:
    """The options (``invalid_option``)."""
    try:
        return Options(**request.options)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "wrong shape"}
    path = ".".join(["options", *[abbreviate(str(part), quoted=False) for part in first["loc"]]])
    known = ", ".join(Options.model_fields)
    raise invalid_option(f"{path}: {first['msg']}. Known options: {known}.", path)


def max_bytes_of(request: RequestInput) -> int:
    """The ceiling of a file in bytes; 1 MB = 1,000,000 (SendGrid, ``max_file_size``) (``invalid_max_file_size``)."""
    if not 1 <= request.max_file_size_mb <= 5_000_000:
        message = "must be from 1 to 5,000,000 (1 MB = 1,000,000 bytes; S3 holds objects up to 5 TB)."
        raise refusal(FailureCode.INVALID_MAX_FILE_SIZE, "max_file_size_mb", message)
    return request.max_file_size_mb * BYTES_PER_MB
