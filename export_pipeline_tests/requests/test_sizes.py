"""What is expected of a request's size, and that finding it out costs little however much was exported before."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from export_pipeline.database.engine import reading
from export_pipeline.database.tables import export_requests
from export_pipeline.requests import queue
from export_pipeline.requests.models import insert_request
from export_pipeline.requests.queue import LOOK_BACK

ROW = {"organization_id": "acme", "dataset": "people", "format": "csv", "recipient_emails": []}
QUESTION = {"filters": {"score": {"gt": 1}}, "list_ids": ["l1"]}


def ask(database: sa.Engine, organization: str = "acme", **values: Any) -> int:
    with database.begin() as connection:
        insert_request(connection, **ROW | {"organization_id": organization} | values)
        return int(connection.execute(sa.select(sa.func.max(export_requests.c.id))).scalar_one())


def expected(database: sa.Engine, *ids: int, seconds: float = 60) -> dict[int, int]:
    with reading(database) as connection:
        return dict(queue.expected_rows(connection, ids, seconds=seconds))


def test_the_last_answer_to_the_same_question_counts_and_the_attempt_before_more(database: sa.Engine) -> None:
    for rows, status in ((1, "expired"), (2, "completed"), (3, "expired"), (4, "failed")):
        ask(database, **QUESTION, status=status, row_count=rows)
    for other in ({"organization": "globex"}, {"dataset": "things"}, {"segment_ids": ["s"]}, {"filters": {}}):
        ask(database, **QUESTION | {"status": "completed", "row_count": 9} | other)
    again, counted, new = ask(database, **QUESTION), ask(database, **QUESTION, rows_total=7), ask(database)
    assert expected(database, again, counted, new) == {again: 3, counted: 7}
    assert expected(database, again, seconds=0) == {}


def test_no_more_than_the_last_answers_are_looked_at(database: sa.Engine) -> None:
    ask(database, **QUESTION, status="completed", row_count=5)
    with database.begin() as connection:
        others = [ROW | {"status": "completed", "row_count": 1}] * (LOOK_BACK - 1)
        connection.execute(export_requests.insert(), others)
    waiting = ask(database, **QUESTION)
    assert expected(database, waiting) == {waiting: 5}
    ask(database, status="completed", row_count=1)
    assert expected(database, waiting) == {}
