"""SendGrid's segment queries: the conditions they become, and the refusals of everything else."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.model import Column, CustomField, Dataset
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.segments import MAX_DEPTH, MAX_LENGTH, parse_segment_query
from export_pipeline.filters.tree import (
    AllOf,
    AnyOf,
    Arithmetic,
    ArrayContains,
    Comparison,
    Condition,
    HasDomain,
    Like,
    Negation,
    OnList,
    Operand,
)

DATASET = parse_dataset(
    """
name: contacts
title: Contacts
table: contacts
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: contact_id, type: uuid}
  - {name: email, type: text}
  - {name: first_name, type: text}
  - {name: last_name, type: text, filter: [eq, is_null]}
  - {name: city, type: text, filter: false}
  - {name: alternate_emails, type: json}
  - {name: custom_fields, type: json}
  - {name: is_subscribed, type: boolean}
  - {name: created_at, type: timestamp}
  - {name: updated_at, type: timestamp}
lists:
  table: members
  member: contact_id
  tenant: organization_id
  lists: {table: lists, tenant: organization_id}
custom_fields: {column: custom_fields, table: fields, tenant: organization_id}
"""
)


def column(name: str) -> Column:
    found = DATASET.column(name)
    assert found is not None
    return found


EMAIL, FIRST, LAST, ALTERNATES = (column(name) for name in ("email", "first_name", "last_name", "alternate_emails"))
CREATED, UPDATED, CONTACT = (column(name) for name in ("created_at", "updated_at", "contact_id"))
AGE = CustomField(column("custom_fields"), "Age", ColumnType.DECIMAL)
SINCE = CustomField(column("custom_fields"), "member_since", ColumnType.TIMESTAMP)
COLOR = CustomField(column("custom_fields"), "color", ColumnType.TEXT)
ID = "6f0c1b3a-0000-4000-8000-000000000001"
EQ, NE, GT, GTE, LT, LTE = (FilterOperator(name) for name in ("eq", "ne", "gt", "gte", "lt", "lte"))
FORM = "SELECT contact_id, updated_at FROM contact_data"


def parse(query: str, dataset: Dataset = DATASET) -> Condition:
    return parse_segment_query(query, dataset, (AGE, SINCE, COLOR), "America/Sao_Paulo")


def there(*operands: Operand) -> tuple[Comparison, ...]:
    return tuple(Comparison(operand, FilterOperator.IS_NULL, False) for operand in operands)


ANA = Comparison(FIRST, EQ, "ana")
OLD = Comparison(AGE, GT, Decimal(5))
YOUNG = Comparison(AGE, LTE, Decimal(5))
NOT_ANA = AllOf((Comparison(FIRST, NE, "ana"), *there(FIRST)))
ACCEPTED: list[tuple[str, Condition]] = [
    ("first_name = 'ana'", ANA),
    ("'ana' = FIRST_NAME", ANA),
    ("\"First_Name\" = ('ana')", ANA),
    ("contact_data.first_name = 'ana' -- a remark\n /* another */", ANA),
    ("first_name = 'o''b\\'s \\\\ \"%'", Comparison(FIRST, EQ, "o'b's \\ \"%")),
    ("first_name != 'ana'", NOT_ANA),
    ("first_name <> 'ana'", NOT_ANA),
    ("NOT first_name = 'ana'", NOT_ANA),
    ("NOT (NOT first_name = 'ana')", ANA),
    ("first_name = 'ana' AND age > 5", AllOf((ANA, OLD))),
    ("first_name = 'ana' OR age > 5 AND age > 5", AnyOf((ANA, AllOf((OLD, OLD))))),
    ("NOT first_name = 'ana' AND age > 5", AllOf((NOT_ANA, OLD))),
    ("NOT (first_name = 'ana' AND NOT age > 5)", AnyOf((NOT_ANA, OLD))),
    ("NOT (first_name = 'ana' OR age > 5)", AllOf((NOT_ANA, YOUNG))),
    ("5 < AGE", OLD),
    ("age > '5'", OLD),
    ("age > 2 * (3 - 0.5)", Comparison(AGE, GT, Decimal("5.0"))),
    ("age > -5", Comparison(AGE, GT, Decimal(-5))),
    ("age >= 5 AND age < 5", AllOf((Comparison(AGE, GTE, Decimal(5)), Comparison(AGE, LT, Decimal(5))))),
    ("age + 1 = 2", Comparison(Arithmetic("+", AGE, Decimal(1)), EQ, Decimal(2))),
    ("-age % 3 <= age", Comparison(Arithmetic("%", Arithmetic("-", Decimal(0), AGE), Decimal(3)), LTE, AGE)),
    ("age BETWEEN 5 AND 9", AllOf((Comparison(AGE, GTE, Decimal(5)), Comparison(AGE, LTE, Decimal(9))))),
    ("age NOT BETWEEN 5 AND 9", AnyOf((Comparison(AGE, LT, Decimal(5)), Comparison(AGE, GT, Decimal(9))))),
    ("first_name IN ('a', ('b'))", Comparison(FIRST, FilterOperator.IN, ("a", "b"))),
    ("first_name NOT IN ('a')", AllOf((Comparison(FIRST, FilterOperator.NIN, ("a",)), *there(FIRST)))),
    ("first_name IS NULL", Comparison(FIRST, FilterOperator.IS_NULL, True)),
    ("first_name IS NOT NULL", Comparison(FIRST, FilterOperator.IS_NULL, False)),
    ("alternate_emails IS NULL", Comparison(ALTERNATES, FilterOperator.IS_NULL, True)),
    ("color LIKE 'a%_\\\\'", Like(COLOR, "a%_\\")),
    ("email NOT LIKE '%x'", AllOf((Negation(Like(EMAIL, "%x")), *there(EMAIL)))),
    ("created_at >= '2026-03-01'", Comparison(CREATED, GTE, datetime(2026, 3, 1, 3, tzinfo=UTC))),
    ("member_since < '2026-03-01T00:00:00Z'", Comparison(SINCE, LT, datetime(2026, 3, 1, tzinfo=UTC))),
    ("updated_at > created_at", Comparison(UPDATED, GT, CREATED)),
    ("first_name != email", AllOf((Comparison(FIRST, NE, EMAIL), *there(FIRST, EMAIL)))),
    (f"contact_id = '{ID.upper()}'", Comparison(CONTACT, EQ, ID)),
    (f"CONTAINS(list_ids, '{ID}')", OnList((ID,))),
    (f"NOT ARRAY_CONTAINS('{ID}'::VARIANT, LIST_IDS)", Negation(OnList((ID,)))),
    ("array_contains(alternate_emails, 'a@b.c')", ArrayContains(ALTERNATES, "a@b.c")),
    ("NOT CONTAINS('x', alternate_emails)", AllOf((Negation(ArrayContains(ALTERNATES, "x")), *there(ALTERNATES)))),
    ("CONTAINS(email_domains, 'b.c')", HasDomain(EMAIL, ALTERNATES, "b.c")),
    ("1 = 1 AND age > 5", AllOf((AllOf(()), OLD))),
    ("'a' > 'b'", AnyOf(())),
]


@pytest.mark.parametrize(("where", "expected"), ACCEPTED)
def test_a_query_becomes_a_condition(where: str, expected: Condition) -> None:
    assert parse(f"{FORM} WHERE {where}") == expected


@pytest.mark.parametrize(
    "query",
    [
        FORM,
        "select UPDATED_AT , Contact_Id from CONTACT_DATA ;",
        "SELECT c.contact_id, updated_at FROM contact_data AS c",
        "SELECT contacts.contact_id, contacts.updated_at FROM contact_data contacts;;",
    ],
)
def test_without_a_where_a_query_selects_everybody(query: str) -> None:
    assert parse(query) == AllOf(())


KNOWN = "known: contact_id, email, first_name, last_name, alternate_emails, created_at, updated_at, list_ids, "
KNOWN += "email_domains, Age, member_since, color"
REFUSED_WHERE = [
    ("shoe_size = 5", f"names column shoe_size; {KNOWN}"),
    ("city = 'x'", "names column city;"),
    ("is_subscribed = 1", "names column is_subscribed;"),
    ("organization_id = 'x'", "names column organization_id;"),
    ("custom_fields = 'x'", "names column custom_fields;"),
    ('email = "ana@example.com"', "put texts in single quotes"),
    ("e.event_type = 'open'", "names a column of e,"),
    ("first_name = 5", "compares FIRST_NAME, a text, with a number"),
    ("age = 'old'", "compares Age with a value of the wrong type; it must be a number"),
    ("contact_id = 'x'", "CONTACT_ID with a value of the wrong type; it must be a UUID"),
    ("created_at > 'yesterday'", "CREATED_AT with a value of the wrong type; it must be an ISO 8601"),
    ("created_at > 5", "compares CREATED_AT, a timestamp, with a number"),
    ("first_name = NULL", "use IS NULL"),
    ("first_name != NULL", "use IS NULL"),
    ("first_name IN ('a', NULL)", "use IS NULL"),
    ("first_name IN (email)", "uses IN with columns"),
    ("first_name IN ()", "uses IN without values"),
    ("'x' IN (list_ids)", "uses IN on a constant"),
    ("first_name IN (SELECT email FROM contact_data)", "uses a subquery"),
    ("first_name = (SELECT 1)", "uses a subquery"),
    ("EXISTS (SELECT 1)", "uses EXISTS"),
    ("first_name = ANY (SELECT 1)", "uses ANY"),
    ("last_name > 'a'", "uses > on LAST_NAME"),
    ("last_name LIKE 'a'", "uses LIKE on LAST_NAME"),
    ("contact_id < 'a'", "uses < on CONTACT_ID"),
    ("age LIKE '5'", "uses LIKE on Age"),
    ("age + 1 LIKE '5'", "uses LIKE on a calculation"),
    ("email LIKE first_name", "uses LIKE with something other than a text"),
    ("email LIKE 'a' ESCAPE '!'", "uses ESCAPE"),
    ("email ILIKE 'a'", "uses ILIKE"),
    ("email RLIKE 'a'", "uses REGEXP"),
    (f"email LIKE '{'%' * 1001}'", "LIKE pattern of more than 1000"),
    ("email = first_name || 'a'", "uses ||"),
    ("email = 'a' 'b'", "uses concatenation"),
    ("LOWER(email) = 'a'", "uses function LOWER"),
    ("created_at > NOW()", "uses function NOW"),
    ("created_at > CURRENT_TIMESTAMP", "uses function CURRENT_TIMESTAMP"),
    ("created_at > DATEADD(day, -1, updated_at)", "uses "),
    ("created_at > '2026-03-01'::timestamp", "uses a cast"),
    ("created_at - INTERVAL '1 day' > updated_at", "uses INTERVAL"),
    ("created_at - 1 > updated_at", "uses - on CREATED_AT, a timestamp"),
    ("COUNT(*) > 5", "uses function COUNT"),
    ("CASE WHEN age = 1 THEN 2 END = 2", "uses CASE"),
    ("email IS DISTINCT FROM first_name", "uses IS DISTINCT FROM"),
    ("email:a = 'x'", "uses :"),
    ("email[0] = 'x'", "uses [ ]"),
    ("email = ?", "uses a placeholder"),
    ("email = :a", "uses a placeholder"),
    ("email = $1", "uses a placeholder"),
    ("email = $$x$$", "uses $$ quotes"),
    ("email COLLATE 'en' = 'x'", "uses COLLATE"),
    ("email = TRUE", "uses TRUE or FALSE"),
    ("email IS TRUE", "uses IS with something other than NULL"),
    ("(email, first_name) = ('a', 'b')", "uses a row of values"),
    ("age & 1 = 1", "uses BITWISEAND"),
    ("age BETWEEN SYMMETRIC 1 AND 2", "uses BETWEEN SYMMETRIC"),
    ("age", "has a value where a condition is expected"),
    ("TRUE", "has a value where a condition is expected"),
    ("age = 1 = 1", "uses EQ, which is not supported here"),
    ("email + 1 = 2", "uses + on EMAIL, a text"),
    ("age + 'a' = 2", "uses + on a text"),
    ("age = 1 / 0", "calculation with / that has no result"),
    ("age = 5 % 0", "calculation with % that has no result"),
    ("age % 3 % 2 = 1", "uses % of a %"),
    ("age = 1e999", "has a number of more than 300 digits"),
    ("age = 1e200 * 1e200", "has a number of more than 300 digits"),
    ("age > created_at", "compares Age, a decimal, with CREATED_AT, a timestamp; compare columns of the same type"),
    ("email = contact_id", "compares EMAIL, a text, with CONTACT_ID, a uuid"),
    ("1 = 'a'", "compares a text with a number"),
    ("list_ids = 'x'", "compares LIST_IDS, an array"),
    ("list_ids IS NULL", "compares LIST_IDS, an array"),
    ("alternate_emails = 'x'", "compares ALTERNATE_EMAILS, an array"),
    ("CONTAINS(list_ids, 'x')", "searches LIST_IDS for a value that is not a list id"),
    ("CONTAINS(email_domains, 'a@b')", "searches EMAIL_DOMAINS for a value with an @"),
    ("CONTAINS(email, 'a')", "uses CONTAINS without one array and one value"),
    ("CONTAINS('b', 'a')", "uses CONTAINS without one array and one value"),
    (
        "ARRAY_CONTAINS(list_ids, alternate_emails)",
        "uses ARRAY_CONTAINS without one array and one value",
    ),
    ("CONTAINS(alternate_emails, 5)", "uses CONTAINS with something other than a text"),
    ("CONTAINS(alternate_emails, LOWER('x'))", "uses function LOWER"),
    ("age = 1 GROUP BY age", "uses GROUP BY"),
    ("age = 1 ORDER BY age", "uses ORDER BY"),
    ("age = 1 LIMIT 5", "uses LIMIT"),
    ("age = 1 HAVING age = 1", "uses HAVING"),
    ("age = 1 QUALIFY age = 1", "uses QUALIFY"),
    ("age = 1 UNION SELECT contact_id, updated_at FROM contact_data", "is a UNION"),
    ("age = 1; DELETE FROM contact_data", "has several statements"),
    ("age = ", "cannot be read as SQL"),
    ("first_name = 'a", "cannot be read as SQL"),
    ("created_at <= now() - 180 days", "cannot be read as SQL at line 1"),
    ("(" * 5000 + "age = 1" + ")" * 5000, f"nested deeper than {MAX_DEPTH} levels"),
    ("NOT " * 4000 + "age = 1", f"nested deeper than {MAX_DEPTH} levels"),
    ("age = " + "- " * 4000 + "1", f"nested deeper than {MAX_DEPTH} levels"),
    ("CASE WHEN " * 1500 + "age = 1", f"nested deeper than {MAX_DEPTH} levels"),
    ("age = 0" + " + age" * 51, "more than 50 arithmetic operations"),
    ("age = 0" + " + age" * 2000, "more than 50 arithmetic operations"),
    ("age=1" + " OR age=1" * 500, "more than 500 conditions"),
    ("first_name = '" + "x" * MAX_LENGTH + "'", f"longer than {MAX_LENGTH} characters"),
]
REFUSED = [(f"{FORM} WHERE {where}", message) for where, message in REFUSED_WHERE] + [
    ("", "does not start with SELECT"),
    ("-- nothing", "does not start with SELECT"),
    ("DELETE FROM contact_data", "does not start with SELECT"),
    ("SHOW TABLES", "does not start with SELECT"),
    ("email = 'a@b.c'", "does not start with SELECT"),
    (f"{FORM} INNER JOIN event_data ON contact_id", "uses event_data, which is not stored here"),
    (f"{FORM} c JOIN event_data e ON c.contact_id = e.contact_id WHERE e.event_type = 'click'", "uses event_data"),
    ("SELECT contact_id, MAX(timestamp) AS updated_at FROM event_data GROUP BY contact_id", "uses event_data"),
    ("SELECT contact_id, updated_at FROM contacts", "reads from contacts;"),
    ("SELECT contact_id, updated_at FROM public.contact_data", "reads from contact_data; read from contact_data"),
    (f"{FORM}, contact_data AS d", "reads from 2 tables"),
    (f"SELECT contact_id, updated_at FROM ({FORM})", "reads from a subquery"),
    (f"WITH x AS ({FORM}) {FORM}", "uses WITH"),
    (f"WITH x AS (GRANT y TO b) {FORM} WHERE email = 'secretvalue@x.org'", "uses WITH"),
    (f"{FORM} WHERE email IN (WITH a AS (SHOW x) SELECT 1) AND email = 'secretvalue@x.org'", "uses WITH"),
    (f"({FORM})", "is a subquery"),
    (f"{FORM} TABLESAMPLE (5)", "has more than an alias after contact_data"),
    ("SELECT contact_id, updated_at", "reads from 0 tables"),
    ("SELECT contact_id FROM contact_data", "must select contact_id and updated_at"),
    ("SELECT * FROM contact_data", "must select contact_id and updated_at"),
    ("SELECT contact_id, updated_at, email FROM contact_data", "must select contact_id and updated_at"),
    ("SELECT contact_id, updated_at, updated_at FROM contact_data", "must select contact_id and updated_at"),
    ("SELECT contact_id, MAX(updated_at) FROM contact_data", "must select contact_id and updated_at"),
    ("SELECT d.contact_id, updated_at FROM contact_data AS c", "must select contact_id and updated_at"),
    ("SELECT DISTINCT contact_id, updated_at FROM contact_data", "uses DISTINCT"),
]


@pytest.mark.parametrize(("query", "message"), REFUSED)
def test_anything_else_is_refused_by_its_name(query: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ExportFailure) as refused:
        parse(query)
    assert message in refused.value.message
    assert refused.value.message.startswith("its query ")
    assert (refused.value.code, refused.value.field) == (FailureCode.INVALID_SEGMENT, "segment_ids")
    assert not caplog.records  # the parser must not log what it cannot read


def test_a_refusal_holds_no_value_of_the_query() -> None:
    for where in (
        "age = 'ana@example.com'",
        'email = "ana@example.com"',
        "email = 'ana@example.com' AND",
        "x = 'ana@example.com'",
    ):
        with pytest.raises(ExportFailure) as refused:
            parse(f"{FORM} WHERE {where}")
        assert "ana" not in refused.value.message


def test_every_word_that_nests_without_parentheses_is_refused() -> None:
    for word in (
        "NOT NOT ",
        "EXISTS ",
        "ANY ",
        "ALL ",
        "PRIOR ",
        "INTERVAL ",
        "CAST ",
        "a -> ",
        "DISTINCT ",
        "~ ",
        "! ",
        "@ ",
    ):
        with pytest.raises(ExportFailure, match="its query"):
            parse(f"{FORM} WHERE {word * (19_000 // len(word))} age = 1")
    for word in (
        "JOIN contact_data ",
        "UNION SELECT 1 ",
        ", LATERAL ",
        "a.",
        "IS NULL ",
        "::int ",
        "[0]",
        "AT TIME ZONE 'x' ",
    ):
        with pytest.raises(ExportFailure, match="its query"):
            parse(f"{FORM} WHERE age {word * (19_000 // len(word))}")


def test_a_dataset_without_lists_knows_no_list_ids() -> None:
    bare = DATASET.model_copy(update={"lists": None})
    with pytest.raises(ExportFailure, match="names column list_ids;"):
        parse(f"{FORM} WHERE CONTAINS(list_ids, '{ID}')", bare)
