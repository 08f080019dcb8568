"""Count the rows of a delivered file with readers that share no code with its writer."""

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
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

_CHUNK = 2**20
_PARQUET_ROWS = 4096
_LARGEST_OBJECT = 256 * 2**20
"""Characters of one JSON object. A longer one without an end is taken for damage."""
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
# Numbers are not converted: Python refuses those of more than 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=len, parse_float=len)
# Possessive quantifiers: a text without an end is not searched again from its middle.
_JSON_TOKEN = re.compile(
    r'[ \t\r\n]*(?:(?P<mark>[{}\[\],:])|(?P<text>"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+")'
    r"|(?P<atom>true|false|null|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?))"
)
_csv_limit = threading.Lock()


class UnreadableFileError(Exception):
    """The file is damaged or not of its format. The message says where, and holds no value of a row."""


def count_rows(
    stream: io.RawIOBase, *, file_format: str, compressed: bool, columns: Sequence[str], csv_delimiter: str = ","
) -> int:
    """The number of rows, without headers, of a file as delivered, which is gzip as a whole if ``compressed``.

    ``columns`` are the headers that CSV, workbooks and Parquet files must have.

    Raises ``UnreadableFileError``: damaged, cut short, or not of its format.
    """
    # Our own buffer is detached, not closed: closing it would close the caller's stream.
    buffered = io.BufferedReader(stream, _CHUNK)
    try:
        source = cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if compressed else cast(BinaryIO, buffered)
        match file_format:
            case "csv":
                return _count_csv(source, columns, csv_delimiter)
            case "json":
                return _count_json(source)
            case "ndjson":
                return _count_ndjson(source)
            case "xlsx":
                return _count_xlsx(source, columns)
            case "parquet":
                return _count_parquet(source, columns)
        raise UnreadableFileError(f"the format {file_format!r} is unknown")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableFileError(f"damaged gzip ({type(error).__name__})") from None
    except UnicodeDecodeError:
        raise UnreadableFileError("not UTF-8") from None
    finally:
        buffered.detach()


def _count_csv(source: BinaryIO, columns: Sequence[str], delimiter: str) -> int:
    text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
    with _any_field_size():
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            # A header may itself begin with the byte order mark, which the decoder removes.
            if next(reader, None) not in (list(columns), [columns[0].removeprefix("\ufeff"), *columns[1:]]):
                raise UnreadableFileError("the header does not match the manifest's columns")
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


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per field, which the whole process shares."""
    with _csv_limit:
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _count_ndjson(source: BinaryIO) -> int:
    count = 0
    for line in source:
        count += 1
        if not line.endswith(b"\n"):
            raise UnreadableFileError(f"line {count} has no end")
        text = line.decode().strip(" \t\r\n")
        with contextlib.suppress(json.JSONDecodeError):
            if text.startswith("{") and end_of_object(text, 0) == len(text):
                continue
        raise UnreadableFileError(f"line {count} is not a JSON object")
    return count


def _count_json(source: BinaryIO) -> int:
    """Count the objects of one array, whatever its white space, with one object in memory at a time."""
    text = io.TextIOWrapper(source, encoding="utf-8", newline="")
    tokens, count = _JsonText(text), 0
    try:
        tokens.expect("[")
        while tokens.peek() != "]":
            if count:
                tokens.expect(",")
            count += 1
            tokens.skip_object(count)
        tokens.expect("]")
        if tokens.peek():
            raise UnreadableFileError("something follows the array")
    finally:
        text.detach()
    return count


class _JsonText:
    """A window on a long JSON text."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._window = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space, empty at the end."""
        while (found := _NOT_BLANK.search(self._window, self._at)) is None:
            self._at = len(self._window)
            if not self._more():
                return ""
        self._at = found.start()
        return found[0]

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise UnreadableFileError(f"not a whole JSON array: {character!r} is missing")
        self._at += 1

    def skip_object(self, number: int) -> None:
        if self.peek() != "{":
            raise UnreadableFileError(f"item {number} is not a JSON object")
        while True:
            try:
                self._at = end_of_object(self._window, self._at)
            except json.JSONDecodeError:
                if len(self._window) - self._at > _LARGEST_OBJECT or not self._more():
                    raise UnreadableFileError(f"item {number} is not a JSON object") from None
            else:
                return

    def _more(self) -> bool:
        # As much as is there already, so that an object of n windows is decoded log n times, not n times.
        chunk = self._text.read(max(_CHUNK, len(self._window) - self._at))
        self._window, self._at = self._window[self._at :] + chunk, 0
        return bool(chunk)


def end_of_object(text: str, at: int) -> int:
    """Where the JSON object that begins at ``at`` ends; a ``JSONDecodeError`` if it does not end, or is no object."""
    try:
        return _DECODER.raw_decode(text, at)[1]
    except RecursionError:
        return end_of_deep_object(text, at)


def end_of_deep_object(text: str, at: int) -> int:
    """The same without recursion: Python's decoder fails at about a thousand levels, which databases allow."""
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


@contextlib.contextmanager
def _seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file, _CHUNK)
        file.seek(0)
        yield cast(BinaryIO, file)


def _count_xlsx(source: BinaryIO, columns: Sequence[str]) -> int:
    import openpyxl

    with _seekable(source) as file:
        try:
            with contextlib.closing(openpyxl.load_workbook(file, read_only=True)) as book:
                return sum(_count_sheet(sheet.iter_rows(values_only=True), columns) for sheet in book.worksheets)
        except UnreadableFileError:
            raise
        except Exception as error:  # noqa: BLE001 - errors of zip, XML and openpyxl, which all mean damage
            raise UnreadableFileError(f"damaged workbook ({type(error).__name__})") from None


def _count_sheet(rows: Iterator[tuple[object, ...]], columns: Sequence[str]) -> int:
    from openpyxl.utils.escape import unescape

    # openpyxl does not decode Excel's escapes in cells; it reads an empty text as None.
    headers = [unescape("" if cell is None else str(cell)) for cell in next(rows, ())]
    if headers != [_in_a_cell(column) for column in columns]:
        raise UnreadableFileError("the header of a sheet does not match the manifest's columns")
    return sum(1 for _ in rows)


def _in_a_cell(header: str) -> str:
    """A header as a workbook can hold it: without characters that XML forbids, at most 32,767 UTF-16 units."""
    allowed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", header)
    units, mark = allowed.encode("utf-16-le"), "… [cut]"
    if len(units) <= 2 * 32_767:
        return allowed
    return units[: 2 * (32_767 - len(mark))].decode("utf-16-le", "ignore") + mark


def _count_parquet(source: BinaryIO, columns: Sequence[str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet

    with _seekable(source) as file:
        try:
            with pa.parquet.ParquetFile(file) as parquet:
                if parquet.schema_arrow.names != list(columns):
                    raise UnreadableFileError("the columns do not match the manifest's")
                count = 0
                for batch in parquet.iter_batches(_PARQUET_ROWS):
                    batch.validate(full=True)  # else text that is not UTF-8 goes unnoticed
                    count += batch.num_rows
                return count
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"damaged Parquet file ({type(error).__name__})") from None
