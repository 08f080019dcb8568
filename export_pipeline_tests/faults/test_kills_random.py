"""SIGKILL at random moments: workers in the middle of every op, fork server, code server, daemon, several at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.exports import KINDS, SETTINGS, Asked, ask, prepare
from export_pipeline_tests.faults.promises import Files, at_rest, broken, files_of, left_behind, unbalanced
from export_pipeline_tests.faults.seeds import Note
from export_pipeline_tests.faults.storm import ALL, BOTH, FORK_SERVER, LONGEST_DELAY, storm
from export_pipeline_tests.faults.supervisor import CODE_SERVER, DAEMON, supervise, wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, open_stack

pytestmark = pytest.mark.timeout(900)

TARGETS = [*list(LONGEST_DELAY) * 3, *[CODE_SERVER] * 4, *[DAEMON] * 4, *[FORK_SERVER] * 3, *[BOTH] * 2, *[ALL] * 3]


@pytest.fixture
def stack(postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path) -> Iterator[Stack]:
    with open_stack(postgres_server, s3_server, tmp_path, prepare=prepare, **SETTINGS) as stack:
        yield stack


def undisturbed(stack: Stack) -> tuple[list[Asked], dict[str, Files]]:
    """One export of every kind while nothing is killed: what the others are held against."""
    asked = [ask(stack, kind) for kind in KINDS]
    wait_until(lambda: at_rest(stack, asked), 300, why=stack.logs)
    return asked, {one.kind: files_of(stack, one.uid) for one in asked}


def test_kills_at_random_moments_lose_nothing_and_double_nothing(
    stack: Stack, chance: random.Random, tally: Tally, note: Note
) -> None:
    first, expected = undisturbed(stack)
    assert all(not broken(stack, one, expected[one.kind]) for one in first)
    assert len(expected["shards"]) > 5
    targets = chance.sample(TARGETS, len(TARGETS))
    with supervise(stack) as supervisor, storm(stack, supervisor, chance) as running:
        running.strike_all(targets)
        running.wait_for_rest(240)
    assert running.killed.total() >= len(TARGETS) >= 30
    assert set(running.killed) == set(TARGETS)
    found = {one: broken(stack, one, expected[one.kind]) for one in running.asked}
    lost, doubled = sum(bool(one.lost) for one in found.values()), sum(bool(one.doubled) for one in found.values())
    tally(
        "kill -9 at random moments (worker in each op, fork server, code server, daemon, together)",
        tries=len(found),
        survived=sum(not one for one in found.values()),
        lost=lost,
        doubled=doubled,
    )
    unknown = sum(one.unknown for one in found.values())
    note(f"{running.killed.total()} kills: {dict(running.killed)}; {unknown} mails of unknown outcome")
    assert {one.uid: vars(bad) for one, bad in found.items() if bad} == {}
    assert unbalanced(stack) == []
    assert left_behind(stack, [*first, *running.asked]) == []
