"""Unsubscribe tokens: valid only for one recipient and one recurring export, and without an address."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor, wait

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from export_pipeline.recurring.unsubscribe import leave, make_token, verify_token, without_unsubscribed
from export_pipeline_tests.recurring.rows import add

KEY, OTHER_KEY = "k" * 32, "o" * 32
TOKEN = make_token(KEY, 12, "ana@example.com")


def test_whoever_leaves_twice_at_once_has_left(database: sa.Engine) -> None:
    recurring_id = add(database)

    def again() -> bool:
        with database.begin() as connection:
            return leave(connection, KEY, make_token(KEY, recurring_id, "ana@example.com"))

    with ThreadPoolExecutor(1) as thread:
        with database.begin() as connection:
            assert leave(connection, KEY, make_token(KEY, recurring_id, "ana@example.com"))
            second = thread.submit(again)
            wait([second], timeout=0.5)  # it waits for the first
        assert second.result()
    with database.connect() as connection:
        assert without_unsubscribed(connection, recurring_id, ["ana@example.com"]) == []


def test_a_token_says_which_recurring_export_and_no_address() -> None:
    found = verify_token(KEY, TOKEN)
    assert found is not None
    assert found[0] == 12
    assert make_token(KEY, 12, " ANA@Example.com") == TOKEN
    assert len({TOKEN, make_token(KEY, 13, "ana@example.com"), make_token(KEY, 12, "bo@example.com")}) == 3
    seen = TOKEN.encode() + base64.urlsafe_b64decode(TOKEN + "==")
    assert b"ana" not in seen.lower()
    # The same recipient cannot be recognized across recurring exports without the key.
    other = verify_token(KEY, make_token(KEY, 13, "ana@example.com"))
    assert other is not None
    assert found[1] != other[1]


def test_another_key_makes_no_token_of_ours() -> None:
    assert verify_token(OTHER_KEY, TOKEN) is None
    assert verify_token(KEY, make_token(OTHER_KEY, 12, "ana@example.com")) is None


@given(st.integers(0, len(base64.urlsafe_b64decode(TOKEN + "==")) * 8 - 1))
def test_a_token_with_any_bit_changed_is_none(bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TOKEN + "=="))
    raw[bit // 8] ^= 1 << bit % 8
    assert verify_token(KEY, base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")) is None


@given(st.text(max_size=120))
def test_text_that_is_no_token_is_none(text: str) -> None:
    assert verify_token(KEY, text) is None


def test_a_cut_or_longer_token_is_none() -> None:
    for text in ("", TOKEN[:-1], TOKEN + "A", TOKEN * 2, TOKEN + "\n", "A" * 99):
        assert verify_token(KEY, text) is None
