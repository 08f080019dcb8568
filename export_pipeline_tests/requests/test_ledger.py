"""The ledger: nobody is mailed twice, and nobody's mail is forgotten."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from export_pipeline.requests import ledger
from export_pipeline.requests.tables import NotificationStatus
from export_pipeline_tests.requests.test_states import ask


@pytest.fixture
def request_id(database: sa.Engine) -> int:
    request_id = ask(database)
    with database.begin() as connection:
        ledger.enlist(connection, request_id, ["ana@example.com", "bob@example.com"])
    return request_id


def test_enlisting_again_keeps_what_is_known(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        ledger.settle(connection, first, NotificationStatus.SENT)
        ledger.enlist(connection, request_id, ["ana@example.com", "bob@example.com", "eve@example.com"])
        assert [address for _, address in ledger.pending(connection, request_id)] == [
            "bob@example.com",
            "eve@example.com",
        ]


def test_one_of_two_processes_sends(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        assert ledger.start_sending(connection, first)
        assert not ledger.start_sending(connection, first)


def test_what_a_dead_process_was_sending_is_unknown_and_left(database: sa.Engine, request_id: int) -> None:
    with database.begin() as connection:
        (first, _), _ = ledger.pending(connection, request_id)
        ledger.start_sending(connection, first)
        assert ledger.close_interrupted(connection, request_id) == 1
        assert [address for _, address in ledger.pending(connection, request_id)] == ["bob@example.com"]
        assert ledger.counts(connection, request_id) == {NotificationStatus.UNKNOWN: 1, NotificationStatus.PENDING: 1}
