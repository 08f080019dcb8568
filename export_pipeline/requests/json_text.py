"""JSON as somebody wrote it: a key that is given twice is an error, and not the last one's value.

The first of two ``filters`` would be dropped without a word, and with it what it narrowed.
"""

from __future__ import annotations

import json
from typing import Any

from export_pipeline.requests.wording import shown


class RepeatedKeyError(ValueError):
    """An object has a key twice; the message says which."""


class RepeatedKey(str):
    """What a stored document is read as if an object in it has a key twice; the text says which.

    It is no object and no list, so that every reader refuses it as it refuses JSON of a wrong shape.
    """

    __slots__ = ()


def read_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON.

    Raises:
        RepeatedKeyError: a key is given twice.
        ValueError: it is no JSON; NaN and Infinity are none.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)


def read_stored(text: str | bytes) -> Any:
    """Parse JSON of a column. PostgreSQL's ``jsonb`` has each key once; SQLite keeps the text as it was written."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RepeatedKeyError as error:
        return RepeatedKey(error)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKeyError(f"has the key {shown(key)} twice; give it once")
    return found


def _refuse(_constant: str) -> None:
    raise ValueError
