"""The tables of the benchmark: how each is made, declared in a catalog, and read by a plain SELECT.

``contacts`` are the demo's, narrowed to the 15 columns that such tables have: numbers, texts, instants, a UUID, JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.demo.data import DEFAULT_SEED, ORGANIZATIONS, schema
from export_pipeline_tests.adversarial import generate_contacts

ORGANIZATION = ORGANIZATIONS[0].id
"""Whose all rows are: a peer that reads the whole table reads the same rows as we do."""
CONTACT_COLUMNS: Mapping[str, str] = {
    "id": "integer",
    "contact_id": "uuid",
    "email": "text",
    "first_name": "text",
    "last_name": "text",
    "name": "text",
    "phone_number": "text",
    "location": "text",
    "city": "text",
    "country": "text",
    "custom_fields": "json",
    "is_subscribed": "boolean",
    "score": "float",
    "created_at": "timestamp",
    "updated_at": "timestamp",
}
"""Names and catalog types: bigint, uuid, eight texts, jsonb, boolean, double, two timestamptz."""
WIDE_COLUMNS = 200
FAT_CHARACTERS = 100_000
_TENANT = "organization_id"
_KINDS: Mapping[str, sa.types.TypeEngine[Any]] = {
    "integer": schema.NUMBER,
    "uuid": schema.UUID,
    "text": sa.Text(),
    "json": schema.JSON,
    "boolean": sa.Boolean(),
    "float": sa.Double(),
    "timestamp": schema.INSTANT,
}


@dataclass(frozen=True)
class BenchTable:
    """A table of ``rows`` rows; ``columns`` are those that are exported, by name and catalog type."""

    shape: str
    rows: int
    columns: Mapping[str, str]
    generate: Callable[[int], Iterator[pa.RecordBatch]]

    @property
    def name(self) -> str:
        """In the database."""
        return f"{self.shape}_{self.rows}"

    @property
    def declaration(self) -> str:
        """The dataset as the catalog wants it."""
        columns = "".join(f"  - {{name: {name}, type: {kind}}}\n" for name, kind in self.columns.items())
        created = "created_at: created_at\n" if "created_at" in self.columns else ""
        return (
            f"name: {self.shape}\ntitle: {self.shape}\ntable: {self.name}\ntenant: {_TENANT}\ntenant_type: uuid\n"
            f"key: id\n{created}columns:\n{columns}"
        )

    @property
    def statement(self) -> str:
        """What a peer reads: the same rows and columns, in the same order."""
        return f"{self.unordered} ORDER BY id"

    @property
    def unordered(self) -> str:
        """The same for a peer that would have to sort what we read in order."""
        names = ", ".join(self.columns)
        return f"SELECT {names} FROM {self.name} WHERE {_TENANT} = '{ORGANIZATION}'"

    def table(self) -> sa.Table:
        """The table, with the key and the index that the product asks for."""
        columns = [sa.Column(name, _KINDS[kind], primary_key=name == "id") for name, kind in self.columns.items()]
        index = sa.Index(f"{self.name}_organization", _TENANT, "id")
        return sa.Table(self.name, sa.MetaData(), *columns, sa.Column(_TENANT, schema.UUID, nullable=False), index)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows."""
        for batch in self.generate(self.rows):
            owner = pa.repeat(pa.scalar(ORGANIZATION), batch.num_rows)
            yield pa.record_batch([*batch.columns, owner], names=[*batch.schema.names, _TENANT])


def contacts(rows: int) -> BenchTable:
    """Contacts of 15 columns."""
    return BenchTable("contacts", rows, CONTACT_COLUMNS, _contacts)


def wide(rows: int) -> BenchTable:
    """The contacts' columns again and again, until there are 200."""
    return BenchTable("wide", rows, {new: CONTACT_COLUMNS[old] for new, old in _wide_names().items()}, _wide)


def fat(rows: int) -> BenchTable:
    """A number and a text of 100 kB."""
    return BenchTable("fat", rows, {"id": "integer", "body": "text"}, _fat)


def _wide_names() -> dict[str, str]:
    names = {name: name for name in CONTACT_COLUMNS}
    repeated = (f"{name}_{turn}" for turn in range(2, WIDE_COLUMNS) for name in CONTACT_COLUMNS)
    return names | {name: name.rpartition("_")[0] for name in islice(repeated, WIDE_COLUMNS - len(names))}


def _contacts(rows: int) -> Iterator[pa.RecordBatch]:
    return (batch.select(list(CONTACT_COLUMNS)) for batch in generate_contacts(rows, DEFAULT_SEED))


def _wide(rows: int) -> Iterator[pa.RecordBatch]:
    names = _wide_names()
    for batch in generate_contacts(rows, DEFAULT_SEED, chunk_rows=4096):
        yield pa.record_batch([batch[old] for old in names.values()], names=list(names))


def _fat(rows: int) -> Iterator[pa.RecordBatch]:
    line = 'One cell, "quoted", with é and a line end;\n'
    text = (line * (FAT_CHARACTERS // len(line) + 1))[:FAT_CHARACTERS]
    for start in range(0, rows, 50):
        numbers = list(range(start + 1, min(start + 50, rows) + 1))
        yield pa.record_batch([pa.array(numbers), pa.array([f"{number} {text}" for number in numbers])], ["id", "body"])
