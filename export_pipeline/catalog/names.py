"""What names in a declaration look like, and how they may be spelled in a request.

What belongs here: the patterns of names and database identifiers, and their spellings.
What does not: which names a dataset has (model), and which of them clash (checks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

_SNAKE_CASE = r"^[a-z][a-z0-9_]{0,62}$"
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_$]{0,62}$"
_TABLE = r"^([A-Za-z_][A-Za-z0-9_$]{0,62}\.)?[A-Za-z_][A-Za-z0-9_$]{0,62}$"

PATTERN_HINTS: Mapping[str, str] = {
    _SNAKE_CASE: "snake_case: a lower-case letter, then lower-case letters, digits and _ (at most 63)",
    _IDENTIFIER: "a database column: a letter or _, then letters, digits, _ and $ (at most 63)",
    _TABLE: "a database table or view: name or schema.name, of letters, digits, _ and $",
}
"""What each pattern means, for error messages."""

Name = Annotated[str, Field(pattern=_SNAKE_CASE)]
DatabaseColumn = Annotated[str, Field(pattern=_IDENTIFIER)]
DatabaseTable = Annotated[str, Field(pattern=_TABLE)]
Header = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


def spellings(name: str) -> tuple[str, ...]:
    """A snake_case name as it may be written: itself, and in camelCase if that differs."""
    first, *rest = name.split("_")
    camel = first + "".join(part.capitalize() for part in rest)
    return (name,) if camel == name else (name, camel)
