"""The file formats: one writer each behind one protocol (``base``), opened by name.

What belongs here: the way from a format's name to its writer.
What does not: a format itself. Each lives in a module of its own, imported when it is first opened,
because the libraries it needs would cost every run, whatever it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export_pipeline.catalog.types import FORMATS
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FileFormat, FormatOptions


def _csv(options: FormatOptions) -> FileFormat[Any]:
    from export_pipeline.formats.csv_format import CsvFormat

    return CsvFormat(options)


def _xlsx(options: FormatOptions) -> FileFormat[Any]:
    from export_pipeline.formats.xlsx.workbook import XlsxFormat

    return XlsxFormat(options)


def _json(options: FormatOptions) -> FileFormat[Any]:
    from export_pipeline.formats.json_format import JsonFormat

    return JsonFormat(options, lines=False)


def _ndjson(options: FormatOptions) -> FileFormat[Any]:
    from export_pipeline.formats.json_format import JsonFormat

    return JsonFormat(options, lines=True)


def _parquet(options: FormatOptions) -> FileFormat[Any]:
    from export_pipeline.formats.parquet_format import ParquetFormat

    return ParquetFormat(options)


_OPENERS: dict[str, Callable[[FormatOptions], FileFormat[Any]]] = {
    "csv": _csv,
    "xlsx": _xlsx,
    "json": _json,
    "ndjson": _ndjson,
    "parquet": _parquet,
}


def open_format(name: str, options: FormatOptions) -> FileFormat[Any]:
    """The format of this name with its options; one that is not known fails."""
    opener = _OPENERS.get(name)
    if opener is None:
        message = f"format {name!r} is not known; use one of {', '.join(FORMATS)}"
        raise ExportFailure(FailureCode.UNKNOWN_FORMAT, message, field="format")
    return opener(options)
