"""The interface of every file format: columns in, whole rows out, never above the size ceiling.

A format works in two steps, so that rows are encoded once however often files are cut: ``encode`` turns a batch of rows
into that format's own representation; ``FileWriter.write`` takes as many of those rows as fit into the current file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol, TypeVar

import pyarrow as pa

from export_pipeline.catalog.types import OutputColumn
from export_pipeline.timing import Timer

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json", "ndjson": "application/x-ndjson"}
"""Of files without gzip, or with gzip for the transfer only."""
TimestampPrecision = Literal["microseconds", "seconds"]
CsvQuoting = Literal["necessary", "non_empty"]
NO_CEILING = 2**62
"""``max_bytes`` of a file that is only measured or read back."""


@dataclass(frozen=True)
class FormatOptions:
    """How a file is to be written. ``max_bytes`` is a ceiling on delivered (compressed) bytes."""

    columns: tuple[OutputColumn, ...]
    max_bytes: int
    compression: Literal["none", "gzip"] = "none"
    time_zone: str = "UTC"
    """IANA name; timestamps are written as ISO 8601 with this zone's offset."""
    guard_formulas: bool = True
    """CSV only: text that a spreadsheet would run gets a leading apostrophe."""
    csv_delimiter: str = ","
    csv_decimal_mark: str = "."
    csv_bom: bool = False
    csv_quoting: CsvQuoting = "necessary"
    """``non_empty``: every header and value in quotes, except null and empty text, which are nothing."""
    timestamps: TimestampPrecision = "microseconds"
    """``seconds``: the fraction is cut off, and UTC is written as ``Z``. Parquet keeps its typed instants."""
    comma_separated: frozenset[str] = frozenset()
    """Names of JSON columns whose arrays of texts a table (csv, xlsx) writes as ``a,b``."""
    dataset: str = "export"
    """Names the sheet of a workbook."""


E = TypeVar("E", bound=Sized)
"""A batch in a format's own representation; ``len()`` is its number of rows."""
E_contra = TypeVar("E_contra", bound=Sized, contravariant=True)


class FileWriter(Protocol[E_contra]):
    """One file being written."""

    def write(self, encoded: E_contra, start: int) -> int:
        """Take rows from ``start`` on and return how many were taken.

        Fewer than ``len(encoded) - start`` means that the file is full: the caller closes it and gives the rest to the
        next one. If a file without rows takes none, the row does not fit under the ceiling.
        """

    def close(self) -> None:
        """Write the end of the file (footer, index). The caller closes the sink."""


class FileFormat(Protocol[E]):
    """One file format with its options."""

    extension: str
    """The end of a file name, compression included: ``csv.gz``."""
    media_type: str
    """The Content-Type of a file as stored: ``application/gzip`` for gzip."""
    packing: Timer
    """The seconds of compression so far; 0 where a library compresses inside its own writer."""

    @property
    def counters(self) -> Mapping[str, int]:
        """The changes that are counted for the manifest (cells cut and so on), with those in the head of every file."""

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> E:
        """Turn a staged batch into this format's representation; adds the changes to ``counted``.

        Called from several threads at once, each with its own batch and counter.
        """

    def open(self, sink: BinaryIO) -> FileWriter[E]:
        """Begin a file on ``sink``, which can write and tell its position, but not seek."""


@dataclass(frozen=True)
class WrittenFile:
    """A finished file: its number (from 1), rows, bytes and SHA-256 (hex) as delivered."""

    ordinal: int
    rows: int
    bytes: int
    sha256: str
    counters: Mapping[str, int] = field(default_factory=dict)
