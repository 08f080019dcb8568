"""Preflight: can this request be served as asked? Everything is answered before a row is read.

What belongs here: the rules of a request, each with its failure code and a message that names the field.
What does not: reading the row (``model``), SQL (engine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export_pipeline.catalog.model import DEFAULT_LAYOUT, Dataset, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.filters import AllOf, parse_filters
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.organizations import Organization

MAX_RECIPIENTS = 26
"""After deduplication (gu1, bulk entity export by e-mail)."""
BYTES_PER_MB = 1_000_000

Format = Literal["csv", "xlsx", "json", "ndjson", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "xlsx", "json", "ndjson", "parquet")
Compression = Literal["none", "gzip"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "gzip")
_SELF_COMPRESSED: tuple[Format, ...] = ("xlsx", "parquet")


class Options(BaseModel):
    """``export_requests.options``: how the file is written. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    time_zone: str | None = Field(
        default=None, description="IANA zone of written timestamps, or `organization`; default UTC"
    )
    guard_formulas: bool = Field(
        default=True, description="CSV: text that a spreadsheet would run gets a leading apostrophe"
    )
    csv_profile: Literal["rfc4180", "excel"] = Field(default="rfc4180", description="`excel` adds a byte order mark")
    csv_delimiter: Literal[",", ";", "\t", "|"] = Field(default=",", description="CSV: between the values")
    csv_decimal_mark: Literal[".", ","] = Field(default=".", description="CSV: in numbers with a fraction")


@dataclass(frozen=True)
class Preflight:
    """A request that can be served: every name resolved, every value typed."""

    dataset: Dataset
    format: Format
    compression: Compression
    columns: tuple[OutputColumn, ...]
    filters: AllOf
    created_from: datetime | None
    """Inclusive, UTC."""
    created_before: datetime | None
    """Exclusive, UTC."""
    options: Options
    time_zone: str
    """IANA zone of written timestamps."""
    max_bytes: int
    recipients: tuple[str, ...]


def preflight(request: ExportRequest, catalog: Mapping[str, Dataset], organization: Organization) -> Preflight:
    """Check a request against the catalog and its organization.

    Raises:
        ExportFailure: the first rule that the request breaks; its fault is always the requester's.
    """
    _check_uid(request)
    _refuse_unsupported(request)
    dataset = _dataset(request, catalog)
    file_format = _format(request)
    compression = _compression(request, file_format)
    options = _options(request)
    zone = _zone(organization.time_zone, "organizations.time_zone")
    created_from, created_before = _date_range(request, dataset, zone)
    time_zone = organization.time_zone if options.time_zone == "organization" else options.time_zone or "UTC"
    _zone(time_zone, "options.time_zone")
    if options.csv_delimiter == "," and options.csv_decimal_mark == ",":
        raise _invalid_option("options.csv_decimal_mark: a comma needs another csv_delimiter, such as ';'.")
    return Preflight(
        dataset=dataset,
        format=file_format,
        compression=compression,
        columns=_columns(request, dataset),
        filters=parse_filters(request.filters, dataset, organization.time_zone),
        created_from=created_from,
        created_before=created_before,
        options=options,
        time_zone=time_zone,
        max_bytes=_max_bytes(request),
        recipients=recipients_of(request),
    )


def _check_uid(request: ExportRequest) -> None:
    # SQLite takes any text for it, and it becomes part of keys.
    try:
        valid = str(UUID(request.uid)) == request.uid
    except ValueError:
        valid = False
    if not valid:
        message = "uid: is not a UUID in lower case with hyphens; leave it out, the database makes one."
        raise ExportFailure(FailureCode.INVALID_REQUEST, message, field="uid")


def _refuse_unsupported(request: ExportRequest) -> None:
    # Refused by name: silently ignoring one of these would deliver a file that was not asked for.
    for field in ("list_ids", "segment_ids", "include", "from_email", "from_sender_id", "webhook_url"):
        if getattr(request, field):
            raise ExportFailure(
                FailureCode.NOT_SUPPORTED, f"{field}: not supported by this version; leave it NULL.", field=field
            )


def _dataset(request: ExportRequest, catalog: Mapping[str, Dataset]) -> Dataset:
    dataset = catalog.get(request.dataset)
    if dataset is None:
        known = ", ".join(sorted(catalog))
        raise ExportFailure(
            FailureCode.UNKNOWN_DATASET, f"dataset: {_shown(request.dataset)} is not one of {known}.", field="dataset"
        )
    return dataset


def _format(request: ExportRequest) -> Format:
    for known in FORMATS:
        if request.format == known:
            return known
    raise ExportFailure(
        FailureCode.UNKNOWN_FORMAT,
        f"format: {_shown(request.format)} is not one of {', '.join(FORMATS)}.",
        field="format",
    )


def _compression(request: ExportRequest, file_format: Format) -> Compression:
    if request.compression is None:
        return "gzip" if file_format == "ndjson" else "none"
    for known in COMPRESSIONS:
        if request.compression == known:
            if known == "gzip" and file_format in _SELF_COMPRESSED:
                message = f"compression: {file_format} files are compressed already; use none or leave it NULL."
                raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
            return known
    message = f"compression: {_shown(request.compression)} is not one of {', '.join(COMPRESSIONS)}."
    raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")


def _options(request: ExportRequest) -> Options:
    try:
        return Options(**request.options)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "wrong shape"}
    path = ".".join(["options", *[_shown(str(part), quoted=False) for part in first["loc"]]])
    known = ", ".join(Options.model_fields)
    raise _invalid_option(f"{path}: {first['msg']}. Known options: {known}.", path)


def _invalid_option(message: str, field: str = "options") -> ExportFailure:
    return ExportFailure(FailureCode.INVALID_OPTION, message, field=field)


def _zone(name: str, field: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _invalid_option(
            f"{field}: {_shown(name)} is not an IANA time zone such as Europe/Madrid.", field
        ) from None


def _date_range(request: ExportRequest, dataset: Dataset, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """Wall clock to instants, both ends inclusive to the second (Cometly, Create Contact Export).

    A wall time that happens twice starts at its first and ends at its second occurrence; one that
    does not exist is read with the offset before the gap as a start, after the gap as an end.
    """
    start, end = request.start_date, request.end_date
    if (start or end) and dataset.created_at is None:
        raise _invalid_range("start_date", f"dataset {dataset.name} has no creation time to filter by; leave it NULL")
    if start and end and end <= start:
        raise _invalid_range("end_date", "must be after start_date")
    try:
        begins = start.replace(tzinfo=zone, fold=0).astimezone(UTC) if start else None
        # End of that second: the range stays closed for whoever counts in seconds, with no gap below one.
        whole = end.replace(microsecond=0, tzinfo=zone, fold=1).astimezone(UTC) if end else None
        return begins, whole + timedelta(seconds=1) if whole else None
    except OverflowError:
        raise _invalid_range("end_date" if end else "start_date", "is out of range") from None


def _invalid_range(field: str, what: str) -> ExportFailure:
    return ExportFailure(FailureCode.INVALID_DATE_RANGE, f"{field}: {what}.", field=field)


def _columns(request: ExportRequest, dataset: Dataset) -> tuple[OutputColumn, ...]:
    layout = dataset.layout(request.layout)
    if layout is None:
        known = ", ".join([DEFAULT_LAYOUT, *dataset.layouts])
        raise ExportFailure(
            FailureCode.UNKNOWN_LAYOUT, f"layout: {_shown(request.layout)} is not one of {known}.", field="layout"
        )
    headers = {shown.column.name: shown.header for shown in layout}
    names = _asked_columns(request, dataset, tuple(headers))
    types = {column.name: column.type for column in dataset.columns}
    return tuple(OutputColumn(name, headers[name], types[name]) for name in names)


def _asked_columns(request: ExportRequest, dataset: Dataset, allowed: Sequence[str]) -> Sequence[str]:
    if not request.columns:
        return allowed
    names: list[str] = []
    for asked in request.columns:
        column = dataset.column(asked)
        if column is None or column.name not in allowed:
            raise ExportFailure(
                FailureCode.UNKNOWN_COLUMN,
                f"columns: {_shown(asked)} is not one of {', '.join(allowed)}.",
                field="columns",
            )
        if column.name in names:
            raise ExportFailure(
                FailureCode.UNKNOWN_COLUMN, f"columns: {column.name} is named twice; name it once.", field="columns"
            )
        names.append(column.name)
    return names


def _max_bytes(request: ExportRequest) -> int:
    if not 1 <= request.max_file_size_mb <= 5_000_000:
        raise ExportFailure(
            FailureCode.INVALID_MAX_FILE_SIZE,
            "max_file_size_mb: must be from 1 to 5,000,000 (1 MB = 1,000,000 bytes; S3 holds objects up to 5 TB).",
            field="max_file_size_mb",
        )
    return request.max_file_size_mb * BYTES_PER_MB


def recipients_of(request: ExportRequest) -> tuple[str, ...]:
    """Who is to be mailed: validated, trimmed, deduplicated with a case-insensitive domain.

    The requester is not added (gu1); nobody, if ``notify_email`` is false (SendGrid).

    Raises:
        ExportFailure: ``invalid_recipient``, ``too_many_recipients``.
    """
    unique: dict[str, str] = {}
    for index, address in enumerate(request.recipient_emails):
        try:
            valid = validate_email(address.strip(), check_deliverability=False).normalized
        except EmailNotValidError:
            field = f"recipient_emails[{index}]"
            raise ExportFailure(
                FailureCode.INVALID_RECIPIENT, f"{field}: is not an e-mail address. Correct or remove it.", field=field
            ) from None
        unique.setdefault(valid, valid)
    if len(unique) > MAX_RECIPIENTS:
        raise ExportFailure(
            FailureCode.TOO_MANY_RECIPIENTS,
            f"recipient_emails: {len(unique)} different addresses; at most {MAX_RECIPIENTS} are allowed.",
            field="recipient_emails",
        )
    return tuple(unique) if request.notify_email else ()


def _shown(text: str, *, quoted: bool = True) -> str:
    """What the requester typed, short and on one line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return repr(short) if quoted else "".join(c if c.isprintable() else "?" for c in short)
