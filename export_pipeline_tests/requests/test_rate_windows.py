"""Windows of counted requests: they end, begin anew, and are cleared away."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from export_pipeline.requests import rate_windows


def counts(database: sa.Engine, key: str, seconds: int, times: int) -> list[int]:
    with database.begin() as connection:
        return [rate_windows.count(connection, key, seconds) for _ in range(times)]


def test_a_window_counts_until_it_ends_and_begins_anew(database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began)
    assert counts(database, "a", 60, 3) == [1, 2, 3]
    assert counts(database, "b", 60, 1) == [1]
    with database.begin() as connection:
        assert rate_windows.forget_ended(connection) == 0
    monkeypatch.setattr(time, "time", lambda: began + 61)
    assert counts(database, "a", 60, 2) == [1, 2]
    with database.begin() as connection:
        assert rate_windows.forget_ended(connection) == 1
        assert rate_windows.forget_ended(connection) == 0
    assert counts(database, "a", 60, 1) == [3]
