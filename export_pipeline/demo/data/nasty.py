"""Values that break exports, each under the name of what it breaks.

PostgreSQL cannot hold U+0000 and SQLite cannot hold NaN, so neither is here. SQLite keeps -0.0 as 0.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEXTS: Mapping[str, str | None] = {
    "null": None,
    "empty": "",
    "space": " ",
    "leading_and_trailing_spaces": "  padded  ",
    "no_break_space": "\u00a0padded\u00a0",
    "accents": "Ñandú Iñárritu Çağlar Łódź",
    "combining": "Zoe\u0308 Me\u0301ndez",
    "chinese": "王小明",
    "japanese": "さくら 東京都",
    "right_to_left": "محمد علي",
    "right_to_left_override": "invoice\u202egpj.exe",
    "hebrew_with_marks": "שָׁלוֹם",
    "emoji_joined": "👩‍👩‍👧‍👦 family",
    "emoji_flag_and_skin": "🇧🇷👍🏽",
    "beyond_the_basic_plane": "\U0001d49c\U0001d4c3\U0001d4b6 𠮷野家",
    "double_quotes": 'Dwayne "The Rock" Johnson',
    "single_quotes": "O'Brien ''twice''",
    "lone_quote": '"',
    "commas": "Acme, Inc., Ltd.",
    "semicolons": "a;b;c",
    "pipes": "a|b|c",
    "tab_inside": "left\tright",
    "line_feed": "first line\nsecond line",
    "carriage_return_line_feed": "first line\r\nsecond line",
    "lone_carriage_return": "first line\rsecond line",
    "only_line_feed": "\n",
    "line_separator": "before\u2028after\u2029end",
    "next_line": "before\u0085after",
    "backslashes": r"C:\new\table \N \. \\",
    "end_of_copy": "before\n\\.\nafter",
    "formula": "=1+1",
    "formula_link": '=HYPERLINK("http://example.com/?x="&A1,"click")',
    "formula_at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "formula_plus": "+cmd|' /C calc'!A0",
    "formula_minus": "-2+3",
    "formula_tab": "\t=1+1",
    "formula_carriage_return": "\r=1+1",
    "formula_after_space": " =1+1",
    "formula_full_width": "\uff1d1+1",
    "negative_number": "-12.50",
    "leading_zeros": "00123",
    "twenty_digits": "12345678901234567890",
    "looks_like_exponent": "1E5",
    "looks_like_date": "3-4",
    "looks_like_boolean": "TRUE",
    "looks_like_null": "NULL",
    "looks_like_nan": "NaN",
    "markup": "<b>&amp;\"'</b> & < >",
    "end_of_character_data": "]]> <!-- --> <?x?>",
    "control_characters": "bell\x07 one\x01 vertical\x0b unit\x1f delete\x7f",
    "workbook_escape": "_x0041_ _x000D_",
    "byte_order_mark": "\ufeffstart",
    "zero_width": "a\u200bb\u00adc",
    "noncharacter": "edge\ufffe\uffff",
    "sql": "'; DROP TABLE contacts; --",
    "template": "{{ 7 * 7 }} ${7*7} %s {0}",
}
"""Short texts by what they break; fewer than ``PINNED_ROWS``, so that all are in the first rows."""
LONG_TEXT = ('Largo camino 𠮷 "quoted", comma\n' * 1300)[:40_000]
"""40,000 characters: more than a workbook's cell holds (32,767)."""
PHONES: tuple[str | None, ...] = (
    "+55 11 91234-5678",
    "+5511912345678",
    "+52 (55) 1234-5678",
    "+1-202-555-0143",
    "+1 (202) 555-0143 ext. 9",
    "+34 600 000 000",
    "+91 98765 43210",
    "(11) 91234-5678",
    "0034600000000",
    "555.0143",
    "-5551234",
    "",
    None,
)
EMAILS: tuple[str | None, ...] = (
    "ana+exports@example.com",
    "UPPER.Case@Example.COM",
    '"very unusual, indeed"@example.com',
    "josé@ejemplo.example",
    "=cmd@example.com",
    "+plus@example.com",
    "o'brien@example.com",
    "用户@例子.example",
    "",
    None,
)
TIMESTAMPS: tuple[str, ...] = (
    "1970-01-01T00:00:00",
    "1969-12-31T23:59:59.999999",
    "1899-12-31T23:59:59",
    "1900-02-28T12:00:00",
    "1900-03-01T00:00:00",
    "1904-01-01T00:00:00",
    "2000-02-29T12:34:56.789012",
    "2024-02-29T23:59:59.999999",
    "2024-12-31T23:59:59.999999",
    "2025-01-01T00:00:00",
    "2024-01-01T02:59:59.999999",
    "2024-01-01T03:00:00",
    "2038-01-19T03:14:08",
    "2106-02-07T06:28:16",
    "2262-04-12T00:00:00",
    "9999-12-30T12:00:00",
    "1582-10-15T00:00:00",
    "2024-06-15T12:00:00.000001",
    "2024-06-15T12:00:00.100000",
)
"""UTC instants; the last one of year 9999 leaves a day, for zones that are ahead of UTC."""
DATES: tuple[str | None, ...] = (
    "1899-12-30",
    "1900-01-01",
    "1900-02-28",
    "1900-03-01",
    "1904-02-29",
    "1970-01-01",
    "2000-02-29",
    "2024-02-29",
    "9999-12-31",
    "0001-01-01",
    None,
)
FLOATS: tuple[float | None, ...] = (
    0.1 + 0.2,
    1e-7,
    -0.0,
    0.0,
    5e-324,
    1.7976931348623157e308,
    2.0**53 + 2,
    1e21,
    123456789.123456789,
    -1.5,
    1 / 3,
    100.0,
    None,
)
DECIMALS: tuple[str | None, ...] = (
    "0.30",
    "0.0000001",
    "-0.01",
    "0",
    "12345678901234567890.123456789012345678",
    "99999999999999999999999999999999999999",
    "1.10",
    "100.000",
    "-9007199254740993",
    "0.1000000000000000055511151231257827",
    None,
)


def canonical_json(value: Any) -> str:
    """JSON as PostgreSQL prints ``jsonb``, so that a row is the same on every database."""
    return json.dumps(_ordered(value), ensure_ascii=False, separators=(", ", ": "))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: _ordered(value[key]) for key in keys}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


OBJECTS: tuple[str | None, ...] = tuple(
    None if value is None else canonical_json(value)
    for value in (
        None,
        {},
        {"texto": 'ñ \u2028 👩‍👩‍👧‍👦 \x01 \t \n " \\ </script>'},
        {"": "empty key", "a key with spaces": None, "línea": "é"},
        {"nested": {"deep": {"deeper": [1, [2, [3, {"x": []}]]]}}},
        {"number": 12345678901234567890, "float": 0.1, "negative": -1.5, "flag": True},
        {"formula": "=1+1", "quote": 'a "quoted" value', "comma": "a,b"},
        {f"profile_field_{at:02d}": f"valor {at}" for at in range(1, 31)},
        {"emptyList": [], "emptyObject": {}, "emptyText": ""},
    )
)
LONG_OBJECT = canonical_json({"history": [{"at": at, "note": f'línea {at}, "x"'} for at in range(1500)]})
"""A JSON text over 32,767 characters."""
