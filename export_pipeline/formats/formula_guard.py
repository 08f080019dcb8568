"""Text that a spreadsheet would run gets a leading apostrophe; numbers and phone numbers do not.

Dangerous by their first character, after OWASP's list: ``=``, ``@``, tab, CR, LF, and ``+`` or ``-``
unless what follows is a number or a phone number; likewise the fullwidth forms of the four signs.
A lone ``+`` or ``-`` stays as it is: people write it for "none", and there is nothing in it to run.
A number or phone number is digits, spaces and ``( ) . , - / %``, with an exponent at most: no name,
no cell and no function can be spelled with these, so nothing can be run. The same holds for an infinity,
an amount with a currency sign and an interval as PostgreSQL writes it, whose only letters are those of fixed words.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.formats.columns import TextBytes, byte_table

_FULLWIDTH_LEAD = 0xEF
_FIRST_BYTES = byte_table(b"=@+-\t\r\n" + bytes([_FULLWIDTH_LEAD]))
# Written so that RE2 (Arrow's) and Python's regular expressions read them alike.
# U+00A0 and U+202F are the spaces that typeset phone numbers and numbers hold.
_NUMBER = r"[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?|\.[0-9]+(?:[eE][+-]?[0-9]+)?%?"
_PHONE = "[ \u00a0\u202f]*\\(?[0-9][0-9 \u00a0\u202f().\\-/]*"
_SIGN = "+\\-\uff0b\uff0d"
_MONEY = "[$\u00a2-\u00a5\u20a0-\u20bf] ?[0-9][0-9.,]*"
_TIME = "[0-9]+:[0-9]{2}:[0-9]{2}(?:\\.[0-9]+)?"
_INTERVAL = f"[0-9]+ (?:year|mon|day)s?(?: [+-]?[0-9]+ (?:mon|day)s?)*(?: [+-]?{_TIME})?|{_TIME}"
_SIGNED_NUMBER = f"[{_SIGN}](?:{_NUMBER}|{_PHONE}|[Ii]nf(?:inity)?|{_MONEY}|{_INTERVAL})?"
_HARMLESS = f"^{_SIGNED_NUMBER}$"
_DANGEROUS = f"^[=@\\t\\r\\n\uff1d\uff20{_SIGN}]"


def guarded_header(header: str) -> str:
    """A header as a cell: an organization names its custom fields itself.

    By Python's own means: a file is opened before its process may be forked, and polars would start threads.
    """
    dangerous = re.match(_DANGEROUS, header) and not re.fullmatch(_SIGNED_NUMBER, header)
    return f"'{header}" if dangerous else header


def guarded(values: pl.Series, texts: pa.Array, raw: TextBytes) -> tuple[pl.Series, int]:
    """The values with their guards, and how many got one; the same series if none needs it.

    ``texts`` and ``raw`` are the same values, as Arrow has them: a block has few suspects, and for few values
    each expression of polars takes longer to begin than to do (with ten of them the guard was half of the encoding).
    """
    places = raw.places_beginning_with(_FIRST_BYTES)
    if not len(places):
        return values, 0
    suspects = texts.take(pa.array(places))
    places, suspects = _without(places, suspects, pc.match_substring_regex(suspects, _HARMLESS))
    # A byte alone does not tell the fullwidth signs from the rest of their block.
    places, suspects = _without(places, suspects, pc.invert(pc.match_substring_regex(suspects, _DANGEROUS)))
    if not len(places):
        return values, 0
    return values.scatter(places, ["'" + text for text in suspects.to_pylist()]), len(places)


def _without(places: npt.NDArray[np.int64], texts: pa.Array, out: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    kept = pc.invert(pc.fill_null(out, fill_value=True))
    return places[kept.to_numpy(zero_copy_only=False)], texts.filter(kept)
