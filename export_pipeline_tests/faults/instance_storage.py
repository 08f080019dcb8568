"""Everything that a Dagster instance and its processes keep on disk, opened up so that it can be searched.

What belongs here: reading. What does not: what must not be there (the tests).
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

_SQLITE = b"SQLite format 3\0"


def texts_of(*directories: Path) -> Iterator[tuple[str, bytes]]:
    """Where something stands, and what: each file as it is, each value of each SQLite row, unpacked if it is packed."""
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                yield str(path.relative_to(directory)), content
                yield from _unpacked(str(path.relative_to(directory)), content)
                if content.startswith(_SQLITE):
                    yield from _rows(path)


def _rows(path: Path) -> Iterator[tuple[str, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        tables = [row[0].decode() for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            # Named by the database itself.
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield f"{path.name}:{table}", value
                        yield from _unpacked(f"{path.name}:{table}", value)


def _unpacked(where: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Dagster packs the snapshots of jobs with zlib."""
    with suppress(zlib.error):
        yield f"{where} (unpacked)", zlib.decompress(content)


def places_of(marks: Iterable[str], *directories: Path) -> dict[str, set[str]]:
    """Where each mark stands that is found at all, however it is spelled."""
    wanted = {mark: mark.lower().encode() for mark in marks}
    found: dict[str, set[str]] = {}
    for where, content in texts_of(*directories):
        lowered = content.lower()
        for mark, text in wanted.items():
            if text in lowered:
                found.setdefault(mark, set()).add(where)
    return found
