"""Counting a delivered file's rows with readers that had no part in writing it."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, cast

# Where a JSON object ends in a text: without making its values, and however deep it nests.


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


_CHUNK = 2**20
_PARQUET_ROWS = 4096
_LARGEST_OBJECT = 256 * 2**20
"""Characters of one JSON object; more without an end is taken for damage."""


class UnreadableFileError(Exception):
    """The file is no whole file of its format. Says where, never what (values of rows stay out)."""


def count_rows(
    stream: io.RawIOBase,
    *,
    file_format: str,
    compressed: bool,
    columns: Sequence[str],
    csv_delimiter: str = ",",
) -> int:
    """The number of rows, headers not counted.

    Args:
        stream: the file as delivered, from its beginning.
        file_format: ``csv``, ``json``, ``ndjson``, ``xlsx`` or ``parquet``.
        compressed: whether the file as a whole is gzip.
        columns: the headers that CSV, workbooks and Parquet files must have.
        csv_delimiter: what stands between two CSV fields.

    Raises:
        UnreadableFileError: damaged, cut short, or of another shape than its format.
    """
    # A buffer of our own, never closed: closing it would close the caller's stream.
    buffered = io.BufferedReader(stream, _CHUNK)
    try:
        source = cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if compressed else cast(BinaryIO, buffered)
        return _counter(file_format, columns, csv_delimiter)(source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableFileError(f"damaged gzip ({type(error).__name__})") from None
    except UnicodeDecodeError:
        raise UnreadableFileError("not UTF-8") from None
    finally:
        buffered.detach()


def _counter(file_format: str, columns: Sequence[str], delimiter: str) -> Callable[[BinaryIO], int]:
    if file_format == "csv":
        return lambda source: _count_csv(source, columns, delimiter)
    if file_format == "xlsx":
        return lambda source: _spooled(source, lambda file: _count_xlsx(file, columns))
    counters: dict[str, Callable[[BinaryIO], int]] = {
        "json": _count_json,
        "ndjson": _count_ndjson,
        "parquet": lambda source: _spooled(source, lambda file: _count_parquet(file, columns)),
    }
    if file_format not in counters:
        raise UnreadableFileError(f"the format {file_format!r} is not known")
    return counters[file_format]


def _count_csv(source: BinaryIO, columns: Sequence[str], delimiter: str) -> int:
    text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
    with _any_field_size():
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            # A header may itself begin with what is also the mark of UTF-8, which the decoder takes away.
            if next(reader, None) not in (list(columns), [columns[0].removeprefix("\ufeff"), *columns[1:]]):
                raise UnreadableFileError("the header is not the manifest's columns")
            count = 0
            for row in reader:
                if len(row) != len(columns) and not (not row and len(columns) == 1):
                    raise UnreadableFileError(f"row {count + 1} has {len(row)} fields, not {len(columns)}")
                count += 1
        except csv.Error:
            raise UnreadableFileError(f"not CSV near line {reader.line_num}") from None
        finally:
            text.detach()
    return count


_field_size = threading.Lock()


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """The csv module's limit of 131,072 characters a field is one for the whole process."""
    with _field_size:
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _count_ndjson(source: BinaryIO) -> int:
    count = 0
    for line in source:
        if not line.endswith(b"\n"):
            raise UnreadableFileError(f"line {count + 1} has no end")
        _expect_object(line, count + 1)
        count += 1
    return count


def _expect_object(line: bytes, number: int) -> None:
    text = line.decode().strip(" \t\r\n")
    try:
        whole = text.startswith("{") and end_of_object(text, 0) == len(text)
    except json.JSONDecodeError:
        whole = False
    if not whole:
        raise UnreadableFileError(f"line {number} is no JSON object")


def _count_json(source: BinaryIO) -> int:
    """Objects of one array, whatever its white space: decode one, forget it, go on."""
    tokens = _JsonText(io.TextIOWrapper(source, encoding="utf-8", newline=""))
    try:
        tokens.expect("[")
        if tokens.peek() == "]":
            count = 0
        else:
            count = 1
            tokens.skip_object(count)
            while tokens.peek() == ",":
                tokens.expect(",")
                count += 1
                tokens.skip_object(count)
        tokens.expect("]")
        if tokens.peek():
            raise UnreadableFileError("something follows the array")
    finally:
        tokens.detach()
    return count


class _JsonText:
    """A window on a long JSON text."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._window = ""
        self._at = 0

    def detach(self) -> None:
        self._text.detach()

    def peek(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            while self._at < len(self._window):
                if self._window[self._at] not in " \t\r\n":
                    return self._window[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise UnreadableFileError(f"not a whole JSON array: {character!r} is missing")
        self._at += 1

    def skip_object(self, number: int) -> None:
        if self.peek() != "{":
            raise UnreadableFileError(f"item {number} is no JSON object")
        while True:
            try:
                self._at = end_of_object(self._window, self._at)
            except json.JSONDecodeError:
                if len(self._window) - self._at > _LARGEST_OBJECT or not self._more():
                    raise UnreadableFileError(f"item {number} is no JSON object") from None
            else:
                return

    def _more(self) -> bool:
        # As much as is there already: an object of many windows is then decoded log n times, not n.
        chunk = self._text.read(max(_CHUNK, len(self._window) - self._at))
        self._window, self._at = self._window[self._at :] + chunk, 0
        return bool(chunk)


def _spooled(source: BinaryIO, count: Callable[[BinaryIO], int]) -> int:
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file, _CHUNK)
        file.seek(0)
        return count(cast(BinaryIO, file))


def _count_xlsx(file: BinaryIO, columns: Sequence[str]) -> int:
    import openpyxl

    try:
        book = openpyxl.load_workbook(file, read_only=True)
        with contextlib.closing(book):
            return sum(_count_sheet(sheet.iter_rows(values_only=True), columns) for sheet in book.worksheets)
    except UnreadableFileError:
        raise
    except Exception as error:  # noqa: BLE001 - zip, XML and openpyxl's own errors, all meaning the same
        raise UnreadableFileError(f"damaged workbook ({type(error).__name__})") from None


def _count_sheet(rows: Iterator[tuple[object, ...]], columns: Sequence[str]) -> int:
    from openpyxl.utils.escape import unescape

    # openpyxl leaves Excel's escapes in cells as they are; an empty text is None.
    headers = [unescape("" if cell is None else str(cell)) for cell in next(rows, ())]
    if headers != [_in_a_cell(column) for column in columns]:
        raise UnreadableFileError("the header of a sheet is not the manifest's columns")
    return sum(1 for _ in rows)


def _in_a_cell(header: str) -> str:
    """What a workbook can hold of a header: no character that XML forbids, and 32,767 UTF-16 units."""
    allowed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", header)
    units, mark = allowed.encode("utf-16-le"), "… [cut]"
    if len(units) <= 2 * 32_767:
        return allowed
    return units[: 2 * (32_767 - len(mark))].decode("utf-16-le", "ignore") + mark


def _count_parquet(file: BinaryIO, columns: Sequence[str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(file) as parquet:
            if parquet.schema_arrow.names != list(columns):
                raise UnreadableFileError("the columns are not the manifest's")
            count = 0
            for batch in parquet.iter_batches(_PARQUET_ROWS):
                batch.validate(full=True)  # text that is not UTF-8 is read without a word
                count += batch.num_rows
            return count
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(f"damaged Parquet file ({type(error).__name__})") from None
