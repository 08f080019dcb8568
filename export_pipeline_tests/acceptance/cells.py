"""What a cell of a file must be, computed in plain Python from the value that the application stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from export_pipeline_tests import adversarial

GUARDED = frozenset(
    adversarial.TEXTS[name]
    for name in (
        "only_line_feed",
        "formula",
        "formula_link",
        "formula_at",
        "formula_plus",
        "formula_minus",
        "formula_tab",
        "formula_carriage_return",
        "formula_full_width",
    )
) | {"=cmd@example.com", "+plus@example.com", "+1 (202) 555-0143 ext. 9"}
"""All texts of the demo that a spreadsheet may take for a formula: CSV puts an apostrophe before them."""
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_CELL_UNITS = 32_767
_FIRST_DAY = date(1900, 3, 1)
"""Excel counts a 29 February 1900 that never was: dates before it are text."""


def iso(moment: datetime) -> str:
    """UTC with its offset; a fraction only where there is one, of 3 or 6 digits."""
    text = moment.strftime("%H:%M:%S")
    if moment.microsecond % 1000:
        text += f".{moment.microsecond:06d}"
    elif moment.microsecond:
        text += f".{moment.microsecond // 1000:03d}"
    return f"{moment.date().isoformat()}T{text}+00:00"


def same_float(one: float, other: float) -> bool:
    return one == other and math.copysign(1, one) == math.copysign(1, other)


# One checker a format: does this cell say this value (of this type)?
Says = Callable[[Any, Any, str], bool]


def csv_says(cell: Any, value: Any, kind: str) -> bool:
    """Cells are text; a reader that cannot tell null from empty gives ``""`` for both."""
    if value is None:
        return cell in ("", None)
    if kind == "float":
        return same_float(float(cell), value)
    if kind == "text" and value in GUARDED:
        return bool(cell == "'" + value)
    return bool(cell == _csv_text(value, kind))


def csv_exactly_says(cell: Any, value: Any, kind: str) -> bool:
    """The same for a reader that tells null (nothing) from empty (``""``)."""
    return (cell is None) == (value is None) and csv_says(cell, value, kind)


def _csv_text(value: Any, kind: str) -> str:
    texts: Mapping[str, Callable[[Any], str]] = {
        "timestamp": iso,
        "date": date.isoformat,
        "boolean": lambda flag: "true" if flag else "false",
    }
    return texts.get(kind, str)(value)


def json_says(cell: Any, value: Any, kind: str) -> bool:
    """Cells come from ``json`` with Decimal for numbers that have a point or an exponent."""
    if value is None:
        return cell is None
    if kind == "float":
        return type(cell) in (int, Decimal) and same_float(float(cell), value)
    if kind in ("json", "decimal"):
        return _identical(cell, json.loads(value, parse_float=Decimal))
    if kind in ("timestamp", "date"):
        return bool(cell == _csv_text(value, kind))
    return _identical(cell, value)


def _identical(one: Any, other: Any) -> bool:
    """Equal in type and in every digit, all the way down, with keys in the same order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, dict):
        return list(one) == list(other) and all(_identical(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_identical, one, other))
    return bool(one == other)


def xlsx_says(cell: Any, value: Any, kind: str) -> bool:
    """A worksheet has no null text and no empty one: both are an empty cell to some reader."""
    if value is None or value == "":
        return cell in (None, "")
    if kind in ("timestamp", "date"):
        return _xlsx_moment(cell, value)
    if kind in ("integer", "float", "boolean"):
        return _xlsx_number(cell, value)
    if kind == "decimal" and len(value.lstrip("-").replace(".", "").lstrip("0")) <= 15:
        return isinstance(cell, int | float) and float(cell) == float(value)
    return bool(cell == xlsx_text(value))


def _xlsx_moment(cell: Any, value: date) -> bool:
    if not isinstance(value, datetime):
        day = cell.date() if isinstance(cell, datetime) else cell
        return bool(day == (value if value >= _FIRST_DAY else value.isoformat()))
    if value.date() < _FIRST_DAY:
        return bool(cell == iso(value))
    # Wall clock in UTC, to the millisecond. calamine gives midnight as a date.
    found = cell if isinstance(cell, datetime) else datetime.combine(cell, time())
    return abs(found.replace(tzinfo=UTC) - value) <= timedelta(milliseconds=1)


def _xlsx_number(cell: Any, value: Any) -> bool:
    if isinstance(value, bool) or isinstance(cell, bool):
        return cell is value
    # Whole numbers come back as int, which has no -0.0.
    return isinstance(cell, int | float) and float(cell) == value


def xlsx_text(value: str) -> str:
    """Without what XML cannot hold, and cut to what a cell holds."""
    clean = _NOT_IN_XML.sub("\ufffd", value)
    if len(clean.encode("utf-16-le")) // 2 <= _CELL_UNITS:
        return clean
    mark = "… [cut]"
    return clean.encode("utf-16-le")[: 2 * (_CELL_UNITS - len(mark))].decode("utf-16-le", "ignore") + mark


def parquet_says(cell: Any, value: Any, kind: str) -> bool:
    """Types are kept; decimals and JSON are text, so that no digit is lost."""
    if value is None:
        return cell is None
    if kind == "float":
        return isinstance(cell, float) and same_float(cell, value)
    if kind == "timestamp":
        return bool(cell == value) and cell.utcoffset() == timedelta(0)
    return type(cell) is type(value) and bool(cell == value)
