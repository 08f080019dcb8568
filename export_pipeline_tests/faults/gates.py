"""Gates: a process is held at one exact statement, so that it can be killed there and nowhere else.

A gate is a trigger on one row of the request database that waits for a lock which the test holds. What belongs here:
the gate. What does not: who is killed at it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from export_pipeline_tests.faults.supervisor import wait_until
from export_pipeline_tests.stack import Stack

_numbers = itertools.count(7_000_001)
_WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"


@dataclass
class Gate:
    """Closed until ``open``; who comes to it waits inside the transaction, before its statement has written."""

    name: str
    number: int
    connection: psycopg.Connection[tuple[object, ...]]
    stack: Stack

    def reached(self) -> bool:
        found = self.connection.execute(_WAITS, [self.number]).fetchone()
        return found is not None and found[0] == 1

    def wait(self, seconds: float = 300) -> None:
        wait_until(self.reached, seconds, why=lambda: f"nobody came to {self.name}; {self.stack.logs()}")

    def open(self) -> None:
        """For good: who waits goes on; a process that was killed is rolled back."""
        self.connection.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def gate(stack: Stack, name: str, event: str, condition: str) -> Iterator[Gate]:
    """Hold whoever makes ``condition`` true; ``event`` is as in ``UPDATE ON export_requests``."""
    number = next(_numbers)
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(b"SELECT pg_advisory_lock(%d)" % number)
        connection.execute(
            f"CREATE FUNCTION gate_{number}() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ "
            f"BEGIN PERFORM pg_advisory_xact_lock_shared({number}); RETURN NEW; END $$".encode()
        )
        connection.execute(
            f"CREATE TRIGGER gate_{number} BEFORE {event} FOR EACH ROW WHEN ({condition}) "
            f"EXECUTE FUNCTION gate_{number}()".encode()
        )
        yield Gate(name, number, connection, stack)
