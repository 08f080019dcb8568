r"""Segments, the stored filters that a request names by id, parsed into conditions.

A segment holds JSON filters, or a query of SendGrid: ``SELECT contact_id, updated_at FROM contact_data WHERE …``. A
query is read as Snowflake's SQL: texts stand in single quotes, where ``''`` and ``\'`` are a quote and ``\\`` is a
backslash, and a word in double quotes is a name. No text of a query reaches a database: it becomes a condition tree,
and whatever the tree cannot express is refused by its name.

Source: SendGrid, Marketing Campaigns V2 Segmentation Query Reference. ``LIKE`` and ``BETWEEN`` are not in it, but
clients send them; ``event_data`` and functions are in it, but no data here can answer them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict
from sqlglot import Token, TokenType, exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError

from export_pipeline.catalog.model import CustomField, Dataset
from export_pipeline.database.types import RepeatedKeyError, read_json
from export_pipeline.failures import ExportFailure, FailureCode, abbreviate
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.sendgrid_operands import OperandReader, invalid_query
from export_pipeline.filters.sendgrid_predicates import PredicateParser
from export_pipeline.filters.tree import AllOf, Condition

MAX_LENGTH = 20_000
MAX_DEPTH = 20
"""Of parentheses, NOTs and signs within each other. The parser takes about 25 of Python's 1000 frames for each."""
_TABLE = "contact_data"
_EXPECTED = "write SELECT contact_id, updated_at FROM contact_data WHERE …"
_ONLY_PLAIN = "use only SELECT, FROM and WHERE"
_SELECTED = ["contact_id", "updated_at"]
_CLAUSES = {"group": "GROUP BY", "order": "ORDER BY", "with_": "WITH", "joins": "JOIN", "laterals": "LATERAL"}


class StoredSegment(BaseModel):
    """A segment as it was when the request was planned. If ``query_dsl`` is set, ``filter`` is ignored."""

    model_config = ConfigDict(frozen=True)

    id: str
    filter: str | None
    """JSON, in the shape of a request's filters."""
    query_dsl: str | None
    """SendGrid's segment query."""


def segment_condition(
    segment: StoredSegment, dataset: Dataset, custom_fields: Sequence[CustomField], time_zone: str
) -> Condition:
    """The condition of a segment's rows. Raises ``invalid_segment`` with the segment's id and what is wrong with it."""
    try:
        if segment.query_dsl is not None:
            return parse_segment_query(segment.query_dsl, dataset, custom_fields, time_zone)
        return parse_filters(read_json(segment.filter or "null"), dataset, time_zone)
    except ExportFailure as failure:
        problem = failure.message
    except RepeatedKeyError as error:
        problem = f"its filter {error}."
    except (ValueError, RecursionError):
        problem = "its filter is not JSON, or is nested too deep."
    message = f"segment_ids: segment {segment.id}: {problem} Correct the segment, or leave it out."
    raise ExportFailure(FailureCode.INVALID_SEGMENT, message, field="segment_ids")


def parse_segment_query(
    query: str, dataset: Dataset, custom_fields: Sequence[CustomField], time_zone: str
) -> Condition:
    """Parse SQL as SendGrid's ``query_dsl`` holds it; the dataset's columns have SendGrid's names.

    ``time_zone`` is the IANA zone of timestamps without an offset.

    Raises ``ExportFailure``: ``invalid_segment``; its message continues the segment's name and says what is wrong.
    """
    try:
        statement = _statement(query)
        if not isinstance(statement, exp.Select):
            raise invalid_query(f"is {_kind_of(statement)}; {_EXPECTED}")
        prefixes = _prefixes(statement)
        for name, value in statement.args.items():
            if value and name not in ("expressions", "from_", "where"):
                raise invalid_query(f"uses {_CLAUSES.get(name, name.strip('_').upper())}; {_ONLY_PLAIN}")
        _check_selected(statement, prefixes)
        where = statement.args.get("where")
        if where is None:
            return AllOf(())
        operands = OperandReader(dataset, custom_fields, prefixes, ZoneInfo(time_zone))
        return PredicateParser(operands).predicate(where.this)
    except RecursionError:
        # The depth of the tokens is limited; this is for words that the parser nests without parentheses.
        raise _too_deep() from None


def _statement(query: str) -> exp.Expr:
    if len(query) > MAX_LENGTH:
        raise invalid_query(f"is longer than {MAX_LENGTH} characters")
    dialect = Dialect.get_or_raise("snowflake")
    # sqlglot logs what it does not understand, and the values of the query with it.
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL + 1)
    try:
        tokens = dialect.tokenize(query)
        _check_tokens(tokens)
        parsed = dialect.parser(error_level=ErrorLevel.IMMEDIATE).parse(tokens, query)
        (statement,) = (each for each in parsed if each)
    except ParseError as error:
        place = error.errors[0] if error.errors else {}
        where = f" at line {place['line']}, column {place['col']}" if place.get("line") else ""
        raise invalid_query(f"cannot be read as SQL{where}") from None
    except (SqlglotError, ValueError):
        raise invalid_query("cannot be read as SQL; check its quotes and parentheses") from None
    return statement


def _check_tokens(tokens: Sequence[Token]) -> None:
    words = [token for token in tokens if token.token_type is not TokenType.SEMICOLON]
    if words != list(tokens[: len(words)]):
        raise invalid_query("has several statements; keep one")
    if not words or words[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN):
        # Checked before parsing: the parser logs a statement that it does not know, with its values.
        raise invalid_query(f"does not start with SELECT; {_EXPECTED}")
    if any(token.token_type is TokenType.WITH for token in words):
        raise invalid_query(f"uses WITH; {_ONLY_PLAIN}")
    if max(_depths(words)) > MAX_DEPTH:
        raise _too_deep()


def _depths(tokens: Sequence[Token]) -> Iterator[int]:
    opening = {TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE}
    closing = {TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END}
    prefixes = {TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.TILDE}
    opened: list[int] = []
    depth = pending = 0
    for token in tokens:
        if token.token_type in prefixes:
            pending += 1
        elif token.token_type in opening:
            opened.append(pending + 1)
            depth, pending = depth + pending + 1, 0
        else:
            pending = 0
            if token.token_type in closing and opened:
                depth -= opened.pop()
        yield depth + pending


def _prefixes(statement: exp.Select) -> frozenset[str]:
    """What may stand before a column's name and a dot: the table's alias, or its name."""
    source = statement.args.get("from_")
    tables = [source.this] if source else []
    tables += [join.this for join in statement.args.get("joins") or ()]
    for table in tables:
        if not isinstance(table, exp.Table):
            raise invalid_query(f"reads from {_kind_of(table)}; read from {_TABLE}")
        name = table.name.lower()
        if name == "event_data":
            raise invalid_query(f"uses event_data, which is not stored here; read from {_TABLE}")
        if name != _TABLE or table.args.get("db"):
            raise invalid_query(f"reads from {abbreviate(table.name, quoted=False)}; read from {_TABLE}")
    if len(tables) != 1:
        raise invalid_query(f"reads from {len(tables)} tables; read from {_TABLE} once")
    (table,) = tables
    unknown = [name for name, value in table.args.items() if value and name not in ("this", "alias")]
    if unknown or (table.args.get("alias") and table.args["alias"].args.get("columns")):
        raise invalid_query(f"has more than an alias after {_TABLE}; keep only the alias")
    return frozenset([table.alias_or_name.lower()])


def _check_selected(statement: exp.Select, prefixes: frozenset[str]) -> None:
    names = [
        column.name.lower()
        for column in statement.expressions
        if isinstance(column, exp.Column)
        and isinstance(column.this, exp.Identifier)
        and column.table.lower() in {"", *prefixes}
    ]
    if len(statement.expressions) != len(_SELECTED) or sorted(names) != _SELECTED:
        raise invalid_query("must select contact_id and updated_at, and nothing else")


def _kind_of(statement: exp.Expr) -> str:
    return {"Union": "a UNION", "Subquery": "a subquery"}.get(type(statement).__name__, "not a plain SELECT")


def _too_deep() -> ExportFailure:
    return invalid_query(f"is nested deeper than {MAX_DEPTH} levels")
