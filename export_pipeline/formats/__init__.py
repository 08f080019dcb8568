"""The file formats: one writer each behind one protocol (``base.FileFormat``), opened by name."""

from __future__ import annotations

from typing import Any

from export_pipeline.catalog.types import FORMATS
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FileFormat, FormatOptions


def open_format(name: str, options: FormatOptions) -> FileFormat[Any]:
    """The format of this name with its options.

    Imported when it is first opened: a run should not pay for the libraries of formats that it does not write.

    Raises ``ExportFailure``: ``unknown_format``, or an option that the format cannot use.
    """
    match name:
        case "csv":
            from export_pipeline.formats.csv_format import CsvFormat

            return CsvFormat(options)
        case "xlsx":
            from export_pipeline.formats.xlsx.workbook import XlsxFormat

            return XlsxFormat(options)
        case "json" | "ndjson":
            from export_pipeline.formats.json_format import JsonFormat

            return JsonFormat(name, options)
        case "parquet":
            from export_pipeline.formats.parquet_format import ParquetFormat

            return ParquetFormat(options)
    message = f"format {name!r} is not known; use one of {', '.join(FORMATS)}"
    raise ExportFailure(FailureCode.UNKNOWN_FORMAT, message, field="format")
