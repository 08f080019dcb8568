"""The exports that the kills meet: their datasets, their tight settings, and requests with recipients who pay."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.home import Home
from export_pipeline_tests.stack import Stack

BALANCE = 10_000
ACME = "acme"
SETTINGS = {
    "EXPORT_HEARTBEAT_SECONDS": "0.5",
    "EXPORT_HEARTBEAT_TIMEOUT_SECONDS": "12",
    "EXPORT_CLAIM_LEASE_SECONDS": "8",
    "EXPORT_SHARD_ROWS": "8000",
    "EXPORT_MAX_ATTEMPTS": "60",
}
"""Recovery within seconds, and more attempts than random kills use up."""
_BIG = """
name: big
title: Big
table: big
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: filler, type: text}
"""
_STEADY = _BIG.replace("big", "steady").replace("Big", "Steady")
_VIEWS = """
CREATE VIEW big AS
SELECT number AS id, 'acme'::text AS organization_id, repeat(md5(number::text), 8) AS filler
FROM generate_series(1, 36000) number;
CREATE VIEW steady AS
SELECT number AS id, 'acme'::text AS organization_id, 'steady' AS filler
FROM generate_series(1, 100) number WHERE pg_sleep(0.2) IS NOT NULL
"""
KINDS: dict[str, dict[str, Any]] = {
    "csv": {"organization_id": ORGANIZATIONS[0].id, "dataset": "contacts", "format": "csv", "compression": "gzip"},
    "xlsx": {"organization_id": ORGANIZATIONS[1].id, "dataset": "contacts", "format": "xlsx"},
    "ndjson": {"organization_id": ORGANIZATIONS[2].id, "dataset": "contacts", "format": "ndjson"},
    "parquet": {"organization_id": ORGANIZATIONS[0].id, "dataset": "contacts", "format": "parquet"},
    # 9 MB: a multipart upload; the other: five shards of several files each.
    "multipart": {"organization_id": ACME, "dataset": "big", "format": "csv", "compression": "none"},
    "shards": {"organization_id": ACME, "dataset": "big", "format": "json", "max_file_size_mb": 1},
}


def prepare(home: Home, database_url: str) -> None:
    """For ``open_stack``: the datasets, organizations with a balance, and Dagster's settings that wait for the dead."""
    catalog = home.directory / "catalog"
    (catalog / "big.yaml").write_text(_BIG)
    (catalog / "steady.yaml").write_text(_STEADY)
    with psycopg.connect(database_url) as connection:
        connection.execute(_VIEWS)
        for organization in {ACME, *(kind["organization_id"] for kind in KINDS.values())}:
            connection.execute("INSERT INTO organizations (id, email_balance) VALUES (%s, %s)", [organization, BALANCE])
    configuration = home.dagster_home / "dagster.yaml"
    text = configuration.read_text()
    for slow, quick in (
        ("start_timeout_seconds: 180", "start_timeout_seconds: 30"),
        ("poll_interval_seconds: 30", "poll_interval_seconds: 5"),
        ("max_concurrent_runs: 5", "max_concurrent_runs: 7"),
        ("limit: 4", "limit: 6"),
        ("user_code_failure_retry_delay: 5", "user_code_failure_retry_delay: 2"),
    ):
        assert slow in text
        text = text.replace(slow, quick)
    configuration.write_text(text)


@dataclass(frozen=True)
class Asked:
    """A request in the table."""

    uid: str
    kind: str
    recipients: tuple[str, ...]


_numbers = itertools.count(1)


def ask(stack: Stack, kind: str, *, recipients: Sequence[str] = (), uid: str = "", **other: Any) -> Asked:
    """Insert a request of a kind, with two recipients of its own if none are given."""
    number = next(_numbers)
    addresses = tuple(recipients) or (f"r{number}-1@example.com", f"r{number}-2@example.com")
    row = {**KINDS.get(kind, {}), "recipient_emails": json.dumps(addresses), **other}
    return Asked(stack.insert(uid=uid or str(uuid.uuid4()), **row), kind, addresses)
