"""Rows as Python's drivers give them, gathered into Arrow batches that a few megabytes bound."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from sys import getsizeof
from typing import Any

import pyarrow as pa

from export_pipeline.catalog.types import Selected
from export_pipeline.engine.formats.base import ARROW_TYPES
from export_pipeline.engine.readers import FETCH_BYTES, STEP_ROWS
from export_pipeline.engine.readers.types import staged_schema, to_staged, wrong_type

AT_ONCE = 16
"""The most rows that a driver is asked for at once: one of them is weighed, for all of them would take too long."""
Rows = Sequence[Sequence[Any]]
_WRONG = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


def batches_of(
    fetch: Callable[[int], Rows], columns: Sequence[Selected], narrow: Collection[int] = ()
) -> Iterator[pa.RecordBatch]:
    """Rows as staged batches.

    Args:
        fetch: gives at most so many of them, and none at the end.
        columns: what they hold.
        narrow: places of doubles that are floats of 32 bits in the database.
    """
    schema = staged_schema(columns)
    for rows in _steps(fetch):
        values = zip(*rows, strict=True)
        arrays = [
            pa.array(one, pa.float32()) if place in narrow else _array(column, one)
            for place, (column, one) in enumerate(zip(columns, values, strict=True))
        ]
        yield to_staged(pa.RecordBatch.from_arrays(arrays, names=schema.names), columns, schema)


def _steps(fetch: Callable[[int], Rows]) -> Iterator[Rows]:
    waiting: list[Sequence[Any]] = []
    weight, step = 0, AT_ONCE
    while rows := fetch(step):
        waiting += rows
        one = sum(map(getsizeof, rows[-1]))
        weight += len(rows) * one
        step = min(AT_ONCE, FETCH_BYTES // one + 1)
        if weight >= FETCH_BYTES or len(waiting) >= STEP_ROWS:
            yield waiting
            waiting, weight = [], 0
    if waiting:
        yield waiting


def _array(column: Selected, values: Sequence[Any]) -> pa.Array:
    try:
        return _text(values) if ARROW_TYPES[column.type] == pa.string() else _inferred(values)
    except _WRONG:
        raise wrong_type(column) from None


def _inferred(values: Sequence[Any]) -> pa.Array:
    """Of the type that the values have, all of them; bytes are text that was not decoded yet."""
    array = pa.array(values)
    return array.cast(pa.string()) if array.type == pa.binary() else array


def _text(values: Sequence[Any]) -> pa.Array:
    """Texts, undecoded or not. Numbers among them as they are written, with the fewest digits that give them back."""
    try:
        return _inferred(values)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        texts = [value if value is None or isinstance(value, str | bytes) else str(value) for value in values]
        return pa.array(texts, pa.string())
