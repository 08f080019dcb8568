r"""SendGrid's segment queries: ``SELECT contact_id, updated_at FROM contact_data WHERE …`` in, a condition out.

A query is read as Snowflake's SQL: texts stand in single quotes, where ``''`` and ``\'`` are a quote and ``\\`` is a
backslash, and a word in double quotes is a name. Nothing of its text reaches a database: it becomes a tree, and what
the tree has no node for is refused by its name.

Source: SendGrid, Marketing Campaigns V2 Segmentation Query Reference. ``LIKE`` and ``BETWEEN`` are not in it, but
clients send them; ``event_data`` and functions are in it, but there is nothing here that could answer them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from export_pipeline.catalog.model import CustomField, Dataset
from export_pipeline.failures import abbreviate
from export_pipeline.filters.sendgrid_operands import Names, refused
from export_pipeline.filters.tree import AllOf, Condition

if TYPE_CHECKING:
    from sqlglot import Token, exp

MAX_LENGTH = 20_000
MAX_DEPTH = 20
"""Of parentheses, NOTs and signs within each other. The parser takes about 25 of Python's 1000 frames for each."""
_TABLE = "contact_data"
_EXPECTED = "write SELECT contact_id, updated_at FROM contact_data WHERE …"
_SELECTED = {"contact_id", "updated_at"}
_PLAIN = {"expressions", "from_", "where"}
_CLAUSES = {"group": "GROUP BY", "order": "ORDER BY", "with_": "WITH", "joins": "JOIN", "laterals": "LATERAL"}


def parse_segment_query(
    query: str, dataset: Dataset, custom_fields: Sequence[CustomField], time_zone: str
) -> Condition:
    """The rows that a segment's query selects.

    Args:
        query: SQL, as SendGrid's ``query_dsl`` holds it.
        dataset: whose rows; its columns are known by SendGrid's names.
        custom_fields: those of the organization.
        time_zone: IANA zone of timestamps that carry no offset.

    Raises:
        ExportFailure: ``invalid_segment``; its message goes on from the segment's name, and names what is wrong.
    """
    from sqlglot import exp

    from export_pipeline.filters.sendgrid_predicates import Predicates

    statement = _statement(query)
    if not isinstance(statement, exp.Select):
        raise refused(f"is {_called(statement)}; {_EXPECTED}")
    prefixes = _prefixes(statement)
    _check_clauses(statement)
    _check_selected(statement, prefixes)
    where = statement.args.get("where")
    if where is None:
        return AllOf(())
    try:
        return Predicates(Names(dataset, custom_fields), prefixes, ZoneInfo(time_zone)).predicate(where.this)
    except RecursionError:
        raise _too_deep() from None


def _statement(query: str) -> exp.Expr:
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import ErrorLevel, ParseError, SqlglotError

    if len(query) > MAX_LENGTH:
        raise refused(f"is longer than {MAX_LENGTH} characters")
    dialect = Dialect.get_or_raise("snowflake")
    # It logs what it does not understand, and with it the values of the query.
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL + 1)
    try:
        tokens = dialect.tokenize(query)
        _check_tokens(tokens)
        (statement,) = (one for one in dialect.parser(error_level=ErrorLevel.IMMEDIATE).parse(tokens, query) if one)
    except RecursionError:
        # The tokens' depth is bounded; this is for words that the parser nests without parentheses.
        raise _too_deep() from None
    except ParseError as error:
        place = error.errors[0] if error.errors else {}
        where = f" at line {place['line']}, column {place['col']}" if place.get("line") else ""
        raise refused(f"cannot be read as SQL{where}") from None
    except (SqlglotError, ValueError):
        raise refused("cannot be read as SQL; check its quotes and parentheses") from None
    return statement


def _check_tokens(tokens: Sequence[Token]) -> None:
    from sqlglot import TokenType

    words = [token for token in tokens if token.token_type is not TokenType.SEMICOLON]
    if words != list(tokens[: len(words)]):
        raise refused("holds several statements; keep one")
    if not words or words[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN):
        # Said before parsing: the parser logs a statement that it does not know, with its values.
        raise refused(f"does not start with SELECT; {_EXPECTED}")
    if any(token.token_type is TokenType.WITH for token in words):
        raise refused("uses WITH; only SELECT, FROM and WHERE can be used")
    if max(_depths(words)) > MAX_DEPTH:
        raise _too_deep()


def _depths(tokens: Sequence[Token]) -> Iterator[int]:
    from sqlglot import TokenType

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
    from sqlglot import exp

    source = statement.args.get("from_")
    tables = [source.this] if source else []
    tables += [join.this for join in statement.args.get("joins") or ()]
    for table in tables:
        if not isinstance(table, exp.Table):
            raise refused(f"reads from {_called(table)}; only {_TABLE} can be read")
        name = table.name.lower()
        if name == "event_data":
            raise refused("uses event_data, which is not kept here; only contact_data can be read")
        if name != _TABLE or table.args.get("db"):
            raise refused(f"reads from {abbreviate(table.name, quoted=False)}; only {_TABLE} can be read")
    if len(tables) != 1:
        raise refused(f"reads from {len(tables)} tables; it must read from {_TABLE} once")
    (table,) = tables
    unknown = [name for name, value in table.args.items() if value and name not in ("this", "alias")]
    if unknown or (table.args.get("alias") and table.args["alias"].args.get("columns")):
        raise refused(f"has more than an alias after {_TABLE}; leave it out")
    return frozenset([table.alias_or_name.lower()])


def _check_clauses(statement: exp.Select) -> None:
    for name, value in statement.args.items():
        if value and name not in _PLAIN:
            clause = _CLAUSES.get(name, name.strip("_").upper())
            raise refused(f"uses {clause}; only SELECT, FROM and WHERE can be used")


def _check_selected(statement: exp.Select, prefixes: frozenset[str]) -> None:
    from sqlglot import exp

    names = [
        one.name.lower()
        for one in statement.expressions
        if isinstance(one, exp.Column) and isinstance(one.this, exp.Identifier) and one.table.lower() in {"", *prefixes}
    ]
    if len(names) != len(statement.expressions) or len(names) != len(_SELECTED) or set(names) != _SELECTED:
        raise refused("must select contact_id and updated_at, and nothing else")


def _called(statement: exp.Expr) -> str:
    return {"Union": "a UNION", "Subquery": "a subquery"}.get(type(statement).__name__, "no plain SELECT")


def _too_deep() -> Exception:
    return refused(f"is nested deeper than {MAX_DEPTH} levels")
