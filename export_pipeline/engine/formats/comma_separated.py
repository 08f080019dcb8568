r"""Arrays of texts as SendGrid's tables write them: ``["a@x.example", "b@x.example"]`` is ``a@x.example,b@x.example``.

What belongs here: which JSON values can be written so, and doing it to a whole column.
What does not: who asks for it (the layout), and quoting the result (the formats).

Only what can be read back without doubt is rewritten. Everything else keeps its JSON: what is no array of
texts, and an array with a text that is empty, has a comma, a quote or a control character in it, begins
or ends with a blank, or begins with ``[`` or ``{`` as JSON does.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa

# A lone surrogate is valid JSON and no text: such an array stays as it is.
_UNICODE_ESCAPE = (
    r"u(?:[0-9A-Ca-cE-Fe-f][0-9A-Fa-f]{3}|[Dd][0-7][0-9A-Fa-f]{2}"
    r"|[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
)
_TEXT = rf'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|{_UNICODE_ESCAPE}))*"'
_BLANK = r"[ \t\r\n]*"
_ARRAY_OF_TEXTS = rf"^{_BLANK}\[{_BLANK}(?:{_TEXT}{_BLANK}(?:,{_BLANK}{_TEXT}{_BLANK})*)?\]{_BLANK}$"
_DOUBTFUL = r'^$|^[\s\[{]|\s$|[,"\x00-\x1f\x7f]'


def comma_separated_texts(array: pa.Array) -> pa.Array:
    """A column of JSON with its plain arrays of texts joined by commas; an empty array is an empty text."""
    values = pl.Series("json", pl.from_arrow(array), dtype=pl.String)
    places = values.str.contains(_ARRAY_OF_TEXTS).fill_null(value=False).arg_true()
    if not len(places):
        return array
    texts = values.gather(places).str.json_decode(pl.List(pl.String))
    is_plain = ~texts.list.eval(pl.element().str.contains(_DOUBTFUL)).list.any()
    joined = texts.list.join(",")
    rewritten = values.scatter(places.filter(is_plain), joined.filter(is_plain))
    return rewritten.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())
