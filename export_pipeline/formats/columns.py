"""The output columns of a batch, for every column-wise format: values, bytes, and texts of instants."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from export_pipeline.catalog.types import OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FormatOptions
from export_pipeline.storage.batches import ARROW_TYPES

# A lone surrogate is valid JSON but not text: such an array stays as it is.
_UNICODE_ESCAPE = (
    r"u(?:[0-9A-Ca-cE-Fe-f][0-9A-Fa-f]{3}|[Dd][0-7][0-9A-Fa-f]{2}"
    r"|[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
)
_TEXT = rf'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|{_UNICODE_ESCAPE}))*"'
_BLANK = r"[ \t\r\n]*"
_ARRAY_OF_TEXTS = rf"^{_BLANK}\[{_BLANK}(?:{_TEXT}{_BLANK}(?:,{_BLANK}{_TEXT}{_BLANK})*)?\]{_BLANK}$"
_DOUBTFUL = r'^$|^[\s\[{]|\s$|[,"\x00-\x1f\x7f]'
ISO_DATE = "%Y-%m-%d"
_DAY_US = 86_400_000_000
_NON_FINITE = (
    (r"(?i)^\+?inf(?:inity)?$", "Infinity"),
    (r"(?i)^-inf(?:inity)?$", "-Infinity"),
    (r"(?i)^[+-]?nan$", "NaN"),
)
# 1972-02-01: after it no zone of the tz database has an offset with seconds (Liberia was the last).
_WHOLE_MINUTE_OFFSETS_SINCE = 761 * _DAY_US


def iso_format(options: FormatOptions) -> str:
    """ISO 8601 with the zone's offset, for ``strftime``; a fraction only where there is one."""
    if options.timestamps == "microseconds":
        return "%Y-%m-%dT%H:%M:%S%.f%:z"
    # SendGrid's and Cometly's files write UTC so: 2021-02-01T12:35:22Z.
    return "%Y-%m-%dT%H:%M:%S" + ("Z" if options.time_zone == "UTC" else "%:z")


class TextBytes:
    """The UTF-8 bytes of a text column, for tests over the whole column at once."""

    def __init__(self, array: pa.Array) -> None:
        _, offsets, data = array.buffers()
        rows = len(array)
        self._offsets: npt.NDArray[np.int32] = (
            np.frombuffer(offsets, np.int32, rows + 1, array.offset * 4) if rows else np.zeros(1, np.int32)
        )
        first, last = int(self._offsets[0]), int(self._offsets[-1])
        buffer = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
        self._values: npt.NDArray[np.uint8] = buffer[first:last]

    @cached_property
    def raw(self) -> bytes:
        """All values, one after another."""
        return self._values.tobytes()

    def has(self, *needles: bytes) -> bool:
        """Whether any needle occurs anywhere in the column."""
        return any(needle in self.raw for needle in needles)

    def has_control(self) -> bool:
        """Whether a byte below the space occurs."""
        return bool(self._values.size) and int(self._values.min()) < 0x20

    def longest(self) -> int:
        """The bytes of the longest value."""
        return int(np.diff(self._offsets).max(initial=0))

    def places_beginning_with(self, table: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The places of values whose first byte is marked in a 256-entry table."""
        if not self._values.size:
            return np.empty(0, np.int64)
        starts = self._offsets[:-1] - self._offsets[0]
        # For an empty value this reads the first byte of the next one: such results are removed afterwards.
        found = np.flatnonzero(table[self._values.take(starts, mode="clip")])
        return found[self._offsets[found] < self._offsets[found + 1]]

    def places_with(self, table: npt.NDArray[np.bool_], pair: bytes) -> npt.NDArray[np.int64]:
        """The places of values that contain a byte marked in a 256-entry table, or these two bytes in a row."""
        # Three times as fast as table[self._values].
        found = np.flatnonzero(np.frombuffer(self.raw.translate(table.tobytes()), np.bool_))
        if self.has(pair):
            first, second = self._values[:-1] == pair[0], self._values[1:] == pair[1]
            found = np.concatenate([found, np.flatnonzero(first & second)])
        if not len(found):
            return found
        ends = self._offsets[1:] - self._offsets[0]
        return np.unique(np.searchsorted(ends, found, side="right"))

    def edge_is_one_of(self, table: npt.NDArray[np.bool_]) -> bool:
        """Whether a value's first or last byte is marked in a 256-entry table."""
        starts, ends = self._offsets[:-1], self._offsets[1:]
        filled = starts < ends
        base = self._offsets[0]
        if table[self._values[starts[filled] - base]].any():
            return True
        return bool(table[self._values[ends[filled] - base - 1]].any())


def byte_table(characters: bytes) -> npt.NDArray[np.bool_]:
    """A 256-entry table that marks these bytes."""
    table = np.zeros(256, np.bool_)
    table[list(characters)] = True
    return table


class Block:
    """The output columns of a staged batch, those named in ``comma_separated`` as ``a,b``.

    In ``frame`` they are named by their place: "0", "1", ...
    """

    def __init__(
        self, batch: pa.RecordBatch, columns: tuple[OutputColumn, ...], comma_separated: frozenset[str] = frozenset()
    ) -> None:
        self.columns = columns
        self.arrays = [
            comma_separated_texts(array) if column.name in comma_separated else array
            for column, array in zip(columns, typed_arrays(batch, columns), strict=True)
        ]
        names = [str(place) for place in range(len(self.arrays))]
        self.frame = pl.DataFrame(pa.RecordBatch.from_arrays(self.arrays, names=names))

    def text_bytes(self, place: int) -> TextBytes:
        """The bytes of a column that is staged as text."""
        return TextBytes(self.arrays[place])

    def numbers(self, place: int) -> pl.Series:
        """A column of decimals or floats; as text if one is not finite, with one spelling for all types."""
        values = self.frame[str(place)]
        if values.dtype == pl.String:
            needs_text = self.text_bytes(place).has(b"n", b"N")
        else:
            needs_text = values.dtype.is_float() and bool(values.is_infinite().any())
        if not needs_text:
            return values
        text = values.cast(pl.String)
        for pattern, spelled in _NON_FINITE:
            text = text.str.replace(pattern, spelled)
        return text

    def has_whole_offsets(self, place: int, zone: str) -> bool:
        """Whether the zone's offsets from UTC are certainly whole minutes at all these instants."""
        earliest = self.frame[str(place)].to_physical().min()
        return zone == "UTC" or not isinstance(earliest, int) or earliest >= _WHOLE_MINUTE_OFFSETS_SINCE

    def timestamp_text(self, place: int, options: FormatOptions) -> pl.Expr:
        """ISO 8601 with the zone's offset."""
        instant = pl.col(str(place))
        local = instant.dt.convert_time_zone(options.time_zone)
        text = local.dt.strftime(iso_format(options))
        if self.has_whole_offsets(place, options.time_zone):
            return text
        # ISO 8601 offsets have no seconds: such instants stay in UTC.
        offset = local.dt.replace_time_zone(None) - instant.dt.replace_time_zone(None)
        is_whole = offset.dt.total_seconds() % 60 == 0
        in_utc = instant.dt.strftime(iso_format(replace(options, time_zone="UTC")))
        return pl.when(is_whole).then(text).otherwise(in_utc)


def comma_separated_texts(array: pa.Array) -> pa.Array:
    """A column of JSON with its plain arrays of texts joined by commas, as SendGrid's tables write them.

    ``["a@x.example", "b@x.example"]`` becomes ``a@x.example,b@x.example``; an empty array is an empty text.
    """
    values = pl.Series("json", pl.from_arrow(array), dtype=pl.String)
    places = values.str.contains(_ARRAY_OF_TEXTS).fill_null(value=False).arg_true()
    if not len(places):
        return array
    texts = values.gather(places).str.json_decode(pl.List(pl.String))
    is_plain = ~texts.list.eval(pl.element().str.contains(_DOUBTFUL)).list.any()
    joined = texts.list.join(",")
    rewritten = values.scatter(places.filter(is_plain), joined.filter(is_plain))
    return rewritten.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def typed_arrays(batch: pa.RecordBatch, columns: tuple[OutputColumn, ...]) -> list[pa.Array]:
    """The arrays of the output columns in their order, each in the Arrow type of its catalog type."""
    return [batch.column(column.name).cast(ARROW_TYPES[column.type]) for column in columns]


def check_time_zone(zone: str) -> None:
    """Fail for an unknown zone (``invalid_option``) now, not at the first timestamp.

    Without polars: a process that has used polars cannot be forked any more (the child waits for ever for its missing
    threads), and a format may be opened before the fork.
    """
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = f"time_zone {zone!r} is not a zone of the IANA database; use one like 'America/Sao_Paulo'"
        raise ExportFailure(FailureCode.INVALID_OPTION, message, field="time_zone") from None
