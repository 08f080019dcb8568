"""A table that never stands still, and its state at any instant.

What belongs here: the writers, and the proof of what a reader must have seen. What does not: exports.

Every transaction of a writer raises ``clock.version`` and notes in ``journal`` what it did. The exported view shows the
clock beside each row: rows of one instant all show the same version, and the journal up to that version says exactly
which rows these are. Rows are inserted, updated, deleted, and moved to another key, before and behind a reader's place.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export_pipeline_tests.acceptance.pipeline import Database

ORGANIZATION = "acme"
ROWS = 6_000
PADDING = "x" * 600
"""So that the rows fill several files of the smallest size that can be asked for."""
WRITERS = 3

_TABLES = (
    """CREATE TABLE accounts (id bigint PRIMARY KEY, organization_id text, tied integer, owner text, amount bigint,
                              created_at timestamp)""",
    "CREATE TABLE clock (version bigint)",
    "CREATE TABLE journal (version bigint, step integer, id bigint, owner text, amount bigint)",
    "INSERT INTO clock VALUES (0)",
)
_SHOWN = (
    "SELECT id, organization_id, tied, owner, amount, created_at, (SELECT version FROM clock) AS version FROM accounts"
)
_SLOWED = f"{_SHOWN} WHERE CASE WHEN id % 500 = 0 THEN pg_sleep(0.02) IS NOT NULL ELSE true END"
"""A reader that takes its time: writers commit many times while it reads."""

_DATASET = """
name: {name}
title: Accounts
table: shown
tenant: organization_id
key: {key}
created_at: created_at
columns:
  - {{name: id, type: integer}}
  - {{name: tied, type: integer}}
  - {{name: organization_id, type: text}}
  - {{name: owner, type: text}}
  - {{name: amount, type: integer}}
  - {{name: created_at, type: timestamp}}
  - {{name: version, type: integer}}
"""
DATASETS = {"by_id": "id", "by_tie": "tied", "by_nothing": "organization_id"}
"""A dataset for each key to sort by: unique, the same in many rows, the same in all of them."""
COLUMNS = ["id", "owner", "amount", "version"]


def write_catalog(directory: Path) -> Path:
    directory.mkdir()
    for name, key in DATASETS.items():
        (directory / f"{name}.yaml").write_text(_DATASET.format(name=name, key=key))
    return directory


def create(database: Database) -> None:
    """The tables with their first rows, all of one instant and of one of seven ties."""
    instant, sqlite = "2026-01-01 00:00:00", database.kind == "sqlite"
    with database.connect() as connection:
        if sqlite:
            connection.execute("PRAGMA journal_mode = WAL")
        for statement in (*_TABLES, f"CREATE VIEW shown AS {_SHOWN if sqlite else _SLOWED}"):
            connection.execute(statement)
        mark = _mark(database)
        rows = [(n * 10, ORGANIZATION, n % 7, f"owner {n} {PADDING}", 1000, instant) for n in range(1, ROWS + 1)]
        many = connection.executemany if sqlite else connection.cursor().executemany
        many(f"INSERT INTO accounts VALUES ({', '.join([mark] * 6)})", rows)
        connection.execute("INSERT INTO journal SELECT 0, 0, id, owner, amount FROM accounts")


def _mark(database: Database) -> str:
    return "?" if database.kind == "sqlite" else "%s"


def rows_at(database: Database, version: int) -> Counter[tuple[int, str, int]]:
    """The rows that were there once the transaction of that version had committed."""
    latest: dict[int, tuple[str | None, int]] = {}
    journal = database.query(
        "SELECT id, owner, amount FROM journal WHERE version <= ? ORDER BY version, step", [version]
    )
    for key, owner, amount in journal:
        latest[key] = (owner, amount)
    return Counter((key, owner, amount) for key, (owner, amount) in latest.items() if owner is not None)


def version(database: Database) -> int:
    return int(database.query("SELECT version FROM clock")[0][0])


@contextmanager
def writers(database: Database, chance: random.Random) -> Iterator[None]:
    """Several connections that write without a pause, in a process of their own; an error of one fails the test.

    In this process their SQLite library and the one of the reader would drop each other's locks on the file.
    """
    command = [sys.executable, "-m", __name__, database.url, str(chance.getrandbits(32))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline, before = time.monotonic() + 60, version(database)
            while version(database) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            yield
        finally:
            _, told = process.communicate()
    assert process.returncode == 0, told


def _write_until_told(url: str, seed: int) -> None:
    stop, errors, database = threading.Event(), list[BaseException](), Database(url)
    threads = [
        threading.Thread(target=_Writer(database, random.Random(seed + number), number, errors).run, args=[stop])
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()  # ends when the test closes it, or dies
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class _Writer:
    def __init__(self, database: Database, chance: random.Random, number: int, errors: list[BaseException]) -> None:
        self._database = database
        self._chance = chance
        self._number = number
        self._errors = errors
        self._made = 0
        self._steps = 0

    def run(self, stop: threading.Event) -> None:
        try:
            with self._database.connect() as connection:
                if self._database.kind == "sqlite":
                    connection.execute("PRAGMA busy_timeout = 60000")
                while not stop.is_set():
                    self._transaction(connection)
                    # SQLite has one writer at a time and hands its lock to whoever asks first: let others ask.
                    stop.wait(self._chance.uniform(0.0, 0.02))
        except Exception as error:  # noqa: BLE001 - told by the process that the thread belongs to
            self._errors.append(error)

    def _transaction(self, connection: Any) -> None:
        if self._database.kind == "sqlite":
            connection.execute("BEGIN IMMEDIATE")
        now = self._one(connection, "UPDATE clock SET version = version + 1 RETURNING version")[0]
        for _ in range(self._chance.randint(1, 4)):
            self._chance.choice([self._insert, self._update, self._delete, self._move, self._move])(connection, now)
        connection.commit()

    def _one(self, connection: Any, statement: str, *values: Any) -> Any:
        marked = statement.replace("?", _mark(self._database))
        return connection.execute(marked, values).fetchone()

    def _any_row(self, connection: Any) -> Any:
        place = self._chance.randint(1, ROWS * 10)
        return self._one(connection, "SELECT id, owner, amount FROM accounts WHERE id >= ? ORDER BY id LIMIT 1", place)

    def _free_key(self) -> int:
        """A key that no other writer makes, anywhere among the keys there are."""
        self._made += 1
        return self._chance.randint(-1, ROWS) * 1_000_000_000 + self._made * 10 + self._number + 1

    def _insert(self, connection: Any, now: int, owner: str = "", amount: int = 1000) -> None:
        key, owner = self._free_key(), owner or f"new owner {PADDING}"
        statement = "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, '2026-01-01 00:00:00') RETURNING id"
        self._one(connection, statement, key, ORGANIZATION, key % 7, owner, amount)
        self._note(connection, now, key, owner, amount)

    def _update(self, connection: Any, now: int) -> None:
        if row := self._any_row(connection):
            key, owner, amount = row
            self._one(connection, "UPDATE accounts SET amount = amount + 1 WHERE id = ? RETURNING id", key)
            self._note(connection, now, key, owner, amount + 1)

    def _delete(self, connection: Any, now: int) -> Any:
        if row := self._any_row(connection):
            self._one(connection, "DELETE FROM accounts WHERE id = ? RETURNING id", row[0])
            self._note(connection, now, row[0], None, 0)
        return row

    def _move(self, connection: Any, now: int) -> None:
        if row := self._delete(connection, now):
            self._insert(connection, now, row[1], row[2])

    def _note(self, connection: Any, now: int, key: int, owner: str | None, amount: int) -> None:
        self._steps += 1
        statement = "INSERT INTO journal VALUES (?, ?, ?, ?, ?) RETURNING version"
        self._one(connection, statement, now, self._steps, key, owner, amount)


if __name__ == "__main__":
    _write_until_told(sys.argv[1], int(sys.argv[2]))
