"""Declarations from YAML: the shipped ones, and errors that name the line and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from export_pipeline.catalog.loader import CatalogError, load_catalog, parse_dataset

HEAD = "name: people\ntitle: People\ntable: people\ntenant: org\nkey: id\n"
COLUMNS = "columns:\n  - {name: id, type: integer}\n  - name: note\n    type: text\n"
SENDGRID_HEADER = (
    "EMAIL,FIRST_NAME,LAST_NAME,ADDRESS_LINE_1,ADDRESS_LINE_2,CITY,STATE_PROVINCE_REGION,POSTAL_CODE,COUNTRY,"
    "ALTERNATE_EMAILS,PHONE_NUMBER,WHATSAPP,LINE,FACEBOOK,UNIQUE_NAME,CREATED_AT,UPDATED_AT,CONTACT_ID"
)
SENDGRID = SENDGRID_HEADER.split(",")
SENDGRID_NEWER = ["PHONE_NUMBER_ID", "EXTERNAL_ID", "ANONYMOUS_ID"]


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        parse_dataset(text, file="people.yaml")
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


def headers(dataset: str, layout: str, *, table: bool = True) -> list[str]:
    return [item.header for item in load_catalog("")[dataset].layout(layout, table=table) or ()]


def test_two_datasets_ship() -> None:
    catalog = load_catalog()
    assert list(catalog) == ["contacts", "entities"]
    assert catalog.version == load_catalog("").version
    assert catalog["entities"].column("country") is catalog["entities"].column("countryCode")


def test_shipped_layouts_are_the_three_systems() -> None:
    assert headers("contacts", "sendgrid_legacy") == SENDGRID
    assert headers("contacts", "sendgrid") == [*SENDGRID, "CUSTOM_FIELDS", *SENDGRID_NEWER]
    assert headers("contacts", "sendgrid", table=False) == [h.lower() for h in headers("contacts", "sendgrid")]
    assert headers("contacts", "cometly") == ["id", "email", "name", "phone", "location"]
    assert [child.header for child in load_catalog()["contacts"].children] == ["comet_tokens", "emails"]
    assert headers("contacts", "cometly", table=False) == headers("contacts", "cometly")
    assert {"external_id", "risk_score", "kyc_verified", "deleted_at"} <= set(headers("entities", "default"))


def test_shipped_layouts_write_as_the_systems_do() -> None:
    layouts = load_catalog("")["contacts"].layouts
    assert list(layouts) == ["sendgrid", "sendgrid_legacy", "cometly"]
    forms = {name: (it.csv_quoting, it.timestamps, it.arrays, it.array_columns) for name, it in layouts.items()}
    sendgrid = ("non_empty", "seconds", "comma_separated", ("alternate_emails",))
    assert forms == {
        "sendgrid": sendgrid,
        "sendgrid_legacy": sendgrid,
        "cometly": ("necessary", "seconds", "json", ()),
    }
    assert [name for name, layout in layouts.items() if layout.expand_custom_fields] == ["sendgrid"]
    assert [name for name, layout in layouts.items() if layout.file_name == "uuid"] == ["cometly"]


def test_the_types_of_an_entity_are_all_said() -> None:
    """gu1, POST /entities: its twelve types."""
    column = load_catalog("")["entities"].column("type")
    assert column is not None
    assert len(column.values) == 12
    assert {"person", "company", "other"} <= set(column.values)


def test_a_wrong_value_names_its_line_and_the_choices() -> None:
    text = HEAD + COLUMNS.replace("type: text", "type: strng")
    expected = "text, integer, float, decimal, boolean, timestamp, date, uuid, json"
    assert problems(text) == [f"people.yaml:9: columns.1.type: 'strng' is not one of {expected}"]


def test_all_problems_are_told_at_once_in_the_order_of_lines() -> None:
    found = problems(
        "name: People\ntitle: {en: 5}\ntable: a;b\ntenant: org\nkey: id\nkolumns: []\n"
        "columns:\n  - {name: id, type: integer}\n  - {name: no, type: text, filter: [contians]}\n"
        "  - {name: a, type: json, filter: [gt]}\n  - {name: b, filter: maybe}\n  - c\n"
        "lists:\n  table: m\n  lists: {tabel: l, tenant: org}\nlayouts:\n  x:\n    columns: []\n"
    )
    assert [problem.split(" ", 2)[:2] for problem in found] == [
        ["people.yaml:1:", "name:"],
        ["people.yaml:2:", "title.en:"],
        ["people.yaml:3:", "table:"],
        ["people.yaml:6:", "kolumns:"],
        ["people.yaml:9:", "columns.1.filter.0:"],
        ["people.yaml:9:", "columns.1.name:"],
        ["people.yaml:10:", "columns.2:"],
        ["people.yaml:11:", "columns.3.filter:"],
        ["people.yaml:11:", "columns.3.type:"],
        ["people.yaml:12:", "columns.4:"],
        ["people.yaml:13:", "lists.member:"],
        ["people.yaml:15:", "lists.lists.tabel:"],
        ["people.yaml:15:", "lists.lists.table:"],
        ["people.yaml:18:", "layouts.x.columns:"],
    ]
    text = "\n".join(found)
    assert "did you mean 'columns'?" in text
    assert "did you mean 'table'?" in text
    assert "False is not text; put quotes around it" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD.replace("key: id", "key: idd") + COLUMNS, "5: key: 'idd' is not a declared column"),
        (HEAD + COLUMNS.replace("integer", "float"), "5: key: 'id' has type float; a key is text, integer or uuid"),
        (HEAD + "created_at: note\n" + COLUMNS, "6: created_at: 'note' has type text; it must be a timestamp"),
        (HEAD + "created_at: then\n" + COLUMNS, "6: created_at: 'then' is not a declared column"),
        (HEAD + COLUMNS + "    aliases:\n      - id\n", "11: columns.1.aliases.0: 'id' is taken by column 'id'"),
        (HEAD + COLUMNS + "  - {name: note, type: text}\n", "10: columns.2.name: 'note' is taken by column 'note'"),
        (HEAD + COLUMNS + "    headers: {default: id}\n", "8: columns.1.name: header 'id' appears twice"),
        (HEAD + COLUMNS + "    headers: {short: N}\n", "10: columns.1.headers.short: layout 'short' does not list"),
        (HEAD + COLUMNS + "layouts:\n  s:\n    columns:\n      - nope\n", "13: layouts.s.columns.0: 'nope' is not"),
        (HEAD + COLUMNS + "layouts:\n  s: {columns: [id, id]}\n", "11: layouts.s.columns.1: column 'id' is listed"),
        (HEAD + COLUMNS + "layouts:\n  default: {columns: [id]}\n", "11: layouts.default: 'default' is always"),
        (HEAD + COLUMNS + "    exported: false\nlayouts: {s: {columns: [note]}}\n", "exported: false; remove it here"),
        (
            HEAD + COLUMNS + "children:\n  - {name: note, table: t, foreign_key: f, value: v, order_by: o}\n",
            "11: children.0.name: 'note' is taken",
        ),
        (HEAD + COLUMNS.replace("integer}", "integer, values: ['1']}"), "7: columns.0.values: 'id' has type integer;"),
        (HEAD + COLUMNS + "    values: [a, b, a]\n", "10: columns.1.values.2: 'a' is listed twice"),
        (
            HEAD + COLUMNS + "custom_fields: {column: nope, table: f, tenant: o}\n",
            "10: custom_fields.column: 'nope' is not",
        ),
        (
            HEAD + COLUMNS + "custom_fields:\n  table: f\n  tenant: o\n  column: note\n",
            "13: custom_fields.column: 'note' has type text; it must be json",
        ),
        (
            HEAD + COLUMNS + "layouts:\n  s:\n    columns: [id]\n    expand_custom_fields: true\n",
            "13: layouts.s.expand_custom_fields: the dataset declares no custom_fields",
        ),
        (
            HEAD + COLUMNS + "layouts:\n  s: {columns: [id, note], array_columns: [note]}\n",
            "11: layouts.s.array_columns.0: 'note' is not a json column of this layout",
        ),
        (
            HEAD + COLUMNS + "  - {name: doc, type: json}\nlayouts:\n  s: {columns: [id], array_columns: [doc]}\n",
            "12: layouts.s.array_columns.0: 'doc' is not a json column of this layout",
        ),
        (
            HEAD + COLUMNS + "    headers: {s: id}\nlayouts:\n  s: {columns: [id, note], header_case: upper}\n",
            "12: layouts.s.columns.1: header 'id' appears twice in this layout",
        ),
        (
            HEAD + COLUMNS + "    headers: {s: ID}\nlayouts:\n  s: {columns: [id, note], header_case: upper}\n",
            "12: layouts.s.columns.1: header 'ID' appears twice in this layout",
        ),
    ],
)
def test_what_does_not_hang_together_is_told_where_it_stands(text: str, expected: str) -> None:
    assert any(expected in problem and problem.startswith("people.yaml:") for problem in problems(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + COLUMNS + "tenant: other\n", "people.yaml:10: tenant: is already on line 4; keep one of them"),
        ("columns:\n  - name: a\n    name: b\n", "people.yaml:3: columns.0.name: is already on line 2"),
        ("name: [1", "people.yaml:1: is not valid YAML: expected"),
        ("name: x\n\tkey: y", "people.yaml:2: is not valid YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2", "people.yaml:2: is not valid YAML: but found another document"),
        ("", "people.yaml:1: is not a mapping"),
        ("- a", "people.yaml:1: is not a mapping"),
        ("a: &a [*a]", "people.yaml:1: a.0: an anchor refers to itself"),
        ("a: \x01", "people.yaml:1: is not valid YAML: unacceptable character"),
        ("a: 2024-99-99", "people.yaml:1: is not valid YAML: month must be"),
        ("a: !!python/object:os.system {}", "people.yaml:1: is not valid YAML: could not determine a constructor"),
    ],
)
def test_yaml_is_read_strictly(text: str, expected: str) -> None:
    assert problems(text)[0].startswith(expected)


def test_problems_of_all_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + COLUMNS, "utf-8")
    (tmp_path / "b.yaml").write_text("# a comment\n" + HEAD + COLUMNS, "utf-8")
    (tmp_path / "c.yml").write_text("name: c", "utf-8")
    (tmp_path / "d.yaml").write_bytes(b"name: \xff")
    (tmp_path / "notes.txt").write_text("not read", "utf-8")
    with pytest.raises(CatalogError) as caught:
        load_catalog(tmp_path)
    found = caught.value.problems
    assert found[0] == "b.yaml:2: name: 'people' is declared in a.yaml too; rename one"
    assert found[1] == "c.yml:1: columns: is required; add it"
    assert found[-1] == "d.yaml:1: is not UTF-8 text; save it as UTF-8"


def test_a_directory_of_ones_own_replaces_what_ships(tmp_path: Path) -> None:
    # A byte order mark is what some editors put there.
    (tmp_path / "people.yaml").write_text("\ufeff" + HEAD + COLUMNS, "utf-8")
    assert list(load_catalog(str(tmp_path))) == ["people"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_directory_without_declarations_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match=r"expected one with \*\.yaml|declare at least one"):
        load_catalog(tmp_path / name)
