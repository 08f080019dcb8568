"""Errors of a declaration use the words of the declaration and name the line; no value is changed silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from export_pipeline.catalog.loader import CatalogError, parse_dataset

FULL = """
name: people
title: {en: People, es: Personas, pt: Pessoas}
description: Everybody.
table: public.people
tenant: org
tenant_type: uuid
key: id
created_at: born
columns:
  - {name: id, type: integer, source: person_id, filter: [eq], aliases: [person], description: The key.}
  - {name: note, type: text, values: [a, b], headers: {default: Note, short: N}, exported: true}
  - {name: born, type: timestamp, filter: false}
  - {name: more, type: json}
children:
  - {name: tokens, header: Tokens, table: t, foreign_key: f, value: v, order_by: o, direction: desc, limit: 5}
lists: {table: m, member: p, list_id: l, tenant: o, lists: {table: ls, id: id, id_type: text, name: n, tenant: o}}
segments: {table: s, id: id, id_type: integer, name: n, tenant: o, filter: f, query_dsl: q}
custom_fields: {column: more, table: d, name: n, field_type: ft, tenant: o}
layouts:
  short:
    columns: [id, note, more]
    header_case: upper
    expand_custom_fields: true
    arrays: comma_separated
    array_columns: [more]
    timestamps: seconds
    csv_quoting: non_empty
    file_name: uuid
    gzip_suffix: gzip
    content_encoded: [csv]
"""
WRONG = ["no such word", -17, 1.5, None, ["no such word"], {"no_such_key": 1}]
OF_PYTHON = re.compile(
    r"<\w|ColumnType|FilterOperator|NoneType|Input |pydantic|function-|tagged-union|KeyError|Traceback|validator"
)


def places(node: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a declaration, mappings and lists included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def around(document: Any, place: tuple[str | int, ...]) -> Any:
    for part in place[:-1]:
        document = document[part]
    return document


PLACES = list(places(yaml.safe_load(FULL)))


def test_the_declaration_that_is_spoiled_here_is_right() -> None:
    assert parse_dataset(FULL).name == "people"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_wrong_value_at_any_place_is_told_in_the_words_of_a_declaration(place: tuple[str | int, ...]) -> None:
    for value in WRONG:
        document = yaml.safe_load(FULL)
        around(document, place)[place[-1]] = value
        try:
            parse_dataset(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), file="people.yaml")
        except CatalogError as error:
            for problem in error.problems:
                assert re.match(r"people\.yaml:\d+: ", problem), problem
                assert not OF_PYTHON.search(problem), problem


NAMED_BY_THE_AUTHOR = (("layouts",), ("columns", 1, "headers"))
MAPPINGS = [
    place
    for place in [(), *PLACES]
    if isinstance(around(yaml.safe_load(FULL), (*place, 0)), dict) and place not in NAMED_BY_THE_AUTHOR
]


@pytest.mark.parametrize("place", MAPPINGS, ids=lambda place: ".".join(map(str, place)))
def test_an_unknown_key_in_any_mapping_is_named(place: tuple[str | int, ...]) -> None:
    document = yaml.safe_load(FULL)
    around(document, (*place, 0))["tabel"] = "x"
    with pytest.raises(CatalogError) as caught:
        parse_dataset(yaml.safe_dump(document, sort_keys=False))
    assert any("tabel: is not a known key; " in problem for problem in caught.value.problems)


IDENTIFIERS = [
    place
    for place in PLACES
    if isinstance(found := around(yaml.safe_load(FULL), place)[place[-1]], str)
    and place[-1] not in {"description", "en", "es", "pt", "header", "default", "short"}
    and found
]


@pytest.mark.parametrize("place", IDENTIFIERS, ids=lambda place: ".".join(map(str, place)))
def test_blanks_around_a_name_are_never_taken_off_in_silence(place: tuple[str | int, ...]) -> None:
    """``" lead"`` and ``lead`` may both be columns of one table."""
    for spoiled in (" {}", "{}\n"):
        document = yaml.safe_load(FULL)
        own = around(document, place)
        own[place[-1]] = value = spoiled.format(own[place[-1]])
        try:
            dataset = parse_dataset(yaml.safe_dump(document, sort_keys=False))
        except CatalogError:
            continue
        assert value in around(dataset.model_dump(mode="json"), place)
