r"""Text that a spreadsheet would run gets a leading apostrophe; numbers and phone numbers do not.

What belongs here: deciding which text is dangerous, and the guard itself.
What does not: other quoting (csv), and workbooks, whose text cells are never formulas.

Dangerous by their first character, after OWASP's list: ``=``, ``@``, tab, CR, LF, and ``+`` or ``-``
unless what follows is a number or a phone number; likewise the fullwidth forms of the four signs.
A lone ``+`` or ``-`` stays as it is: people write it for "none", and there is nothing in it to run.
A number or phone number is digits, spaces and ``( ) . , - / %``, with an exponent at most: no name,
no cell and no function can be spelled with these, so nothing can be run.
"""

from __future__ import annotations

import re

import polars as pl

from export_pipeline.engine.formats.columns import TextBytes, byte_table

_FULLWIDTH_LEAD = 0xEF
_FIRST_BYTES = byte_table(b"=@+-\t\r\n" + bytes([_FULLWIDTH_LEAD]))

# Written so that Rust's and Python's regular expressions read them alike.
# U+00A0 and U+202F are the spaces that typeset phone numbers and numbers hold.
_NUMBER = r"[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?|\.[0-9]+(?:[eE][+-]?[0-9]+)?%?"
_PHONE = "[ \u00a0\u202f]*\\(?[0-9][0-9 \u00a0\u202f().\\-/]*"
_SIGN = "+\\-\uff0b\uff0d"
_SIGNED_NUMBER = f"[{_SIGN}](?:{_NUMBER}|{_PHONE})?"
_HARMLESS = f"^{_SIGNED_NUMBER}$"
_DANGEROUS = f"^[=@\\t\\r\\n\uff1d\uff20{_SIGN}]"


def guarded_header(header: str) -> str:
    """A header as a cell: an organization names its custom fields itself.

    By Python's own means: a file is opened before its process may be forked, and polars would start threads.
    """
    dangerous = re.match(_DANGEROUS, header) and not re.fullmatch(_SIGNED_NUMBER, header)
    return f"'{header}" if dangerous else header


def guarded(values: pl.Series, raw: TextBytes) -> tuple[pl.Series, int]:
    """The values with their guards, and how many got one; the same series if none needs it."""
    # A regex over a whole column for the sake of one value would cost more than writing the column.
    places = raw.places_beginning_with(_FIRST_BYTES)
    if not len(places):
        return values, 0
    suspects = values.gather(places)
    dangerous = (~suspects.str.contains(_HARMLESS)).fill_null(value=False)
    # A byte alone does not tell the fullwidth signs from the rest of their block.
    dangerous = dangerous & suspects.str.contains(_DANGEROUS).fill_null(value=False) if dangerous.any() else dangerous
    count = int(dangerous.sum())
    if not count:
        return values, 0
    return values.scatter(places[dangerous.to_numpy()], "'" + suspects.filter(dangerous)), count
