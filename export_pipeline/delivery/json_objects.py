"""Where a JSON object ends in a text: without making its values, and however deep it nests."""

from __future__ import annotations

import json
import re

# Numbers are not made: Python refuses those of more than 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=len, parse_float=len)
# Possessive repeats: a text without an end is not tried again from its middle.
_JSON_TOKEN = re.compile(
    r'[ \t\r\n]*(?:(?P<mark>[{}\[\],:])|(?P<text>"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+")'
    r"|(?P<atom>true|false|null|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?))"
)


def end_of_object(text: str, at: int) -> int:
    """Where the JSON object that begins here ends.

    Raises:
        json.JSONDecodeError: it does not end, or is none.
    """
    try:
        return _DECODER.raw_decode(text, at)[1]
    except RecursionError:
        return end_of_deep_object(text, at)


def end_of_deep_object(text: str, at: int) -> int:
    """The same without recursion: Python's reader gives up at about a thousand levels, databases do not."""
    open_: list[str] = []
    expected = "value"
    while True:
        token = _JSON_TOKEN.match(text, at)
        if token is None:
            raise json.JSONDecodeError("no token", text, at)
        at = token.end()
        mark, is_key = token["mark"], token["text"] is not None and expected in ("key", "key or }")
        if mark in ("{", "[") and expected in ("value", "value or ]"):
            open_.append(mark)
            expected = "key or }" if mark == "{" else "value or ]"
        elif is_key:
            expected = ":"
        elif mark == ":" and expected == ":":
            expected = "value"
        elif mark == "," and expected == ", or end":
            expected = "key" if open_[-1] == "{" else "value"
        elif _closes(mark, open_[-1:], expected):
            open_.pop()
            expected = ", or end"
            if not open_:
                return at
        elif mark is None and expected in ("value", "value or ]"):
            expected = ", or end"
        else:
            raise json.JSONDecodeError("not expected here", text, at)


def _closes(mark: str | None, innermost: list[str], expected: str) -> bool:
    pair = {"}": ("{", "key or }"), "]": ("[", "value or ]")}.get(mark or "")
    return pair is not None and innermost == [pair[0]] and expected in (pair[1], ", or end")
