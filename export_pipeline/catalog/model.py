"""The dataset model: its table, its columns, and how requests may use them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from export_pipeline.catalog.types import (
    OPERATORS_BY_TYPE,
    ColumnType,
    DatabaseColumn,
    DatabaseTable,
    FilterOperator,
    Header,
    IdentityType,
    Locale,
    Name,
    NameStyle,
    spellings,
)

DEFAULT_LAYOUT = "default"
"""The layout of every dataset: all exported columns, in the order of the declaration."""


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Title(_Declaration):
    """A title in the languages of the mails; a plain string in YAML is the English title."""

    en: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    es: str = ""
    pt: str = ""

    def localized(self, locale: Locale) -> str:
        """The title in ``locale``, or else in English."""
        return str(getattr(self, locale)) or self.en


def _title(value: object) -> object:
    return {"en": value} if isinstance(value, str) else value


def _filter_kind(value: object) -> str:
    return "switch" if isinstance(value, bool) else "operators"


FilterRule = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[tuple[FilterOperator, ...], Tag("operators")],
    Discriminator(_filter_kind),
]


class Column(_Declaration):
    """A column: its name in requests and files, its source, and how it may be used."""

    name: Name = Field(description="Name in requests, in filters and in the default header.")
    source: DatabaseColumn = Field(
        default_factory=lambda data: data.get("name", ""), description="Column of the table or view. Default: the name."
    )
    type: ColumnType
    description: str = ""
    headers: dict[Name, Header] = Field(default_factory=dict, description="Header per layout. Default: the name.")
    filter: FilterRule = Field(
        default=True, description="true = every operator of the type, false = none, or a list of operators."
    )
    values: tuple[str, ...] = Field(
        default=(), description="All values of a text column; a filter with another value is refused."
    )
    aliases: tuple[Name, ...] = Field(default=(), description="Other names in filters.")
    exported: bool = Field(default=True, description="false = only for filters, never in a file.")

    @property
    def operators(self) -> tuple[FilterOperator, ...]:
        """The operators that filters may use on this column; empty if it cannot be filtered."""
        if isinstance(self.filter, tuple):
            return self.filter
        return OPERATORS_BY_TYPE[self.type] if self.filter else ()

    @model_validator(mode="after")
    def _operators_suit_the_type(self) -> Column:
        wrong = [operator for operator in self.operators if operator not in OPERATORS_BY_TYPE[self.type]]
        if wrong:
            suitable = ", ".join(OPERATORS_BY_TYPE[self.type])
            raise ValueError(f"filter: {', '.join(wrong)} cannot be used on type {self.type}; use some of {suitable}")
        return self


class ChildList(_Declaration):
    """Values of another table that belong to a row; a request may export them as one array column."""

    name: Name = Field(description="Name in the request's `include`.")
    header: Header = Field(default_factory=lambda data: data.get("name", ""))
    description: str = ""
    table: DatabaseTable
    foreign_key: DatabaseColumn = Field(description="Column that holds the row's key.")
    value: DatabaseColumn = Field(description="Column of the values.")
    order_by: DatabaseColumn
    direction: Literal["asc", "desc"] = "asc"
    limit: int | None = Field(default=None, ge=1, description="Maximum number of values per row.")
    tenant: DatabaseColumn | None = Field(default=None, description="The child table's own tenant column.")
    type: ClassVar[ColumnType] = ColumnType.JSON
    """A JSON array of texts."""

    @property
    def source(self) -> str:
        """The name in messages about wrong data."""
        return f"{self.table}.{self.value}"


class ListTable(_Declaration):
    """The table of the lists; a request's list ids are checked against it."""

    table: DatabaseTable
    id: DatabaseColumn = "id"
    id_type: IdentityType = ColumnType.UUID
    name: DatabaseColumn = "name"
    tenant: DatabaseColumn


class MembershipTable(_Declaration):
    """The table that says which rows are on which list."""

    table: DatabaseTable
    member: DatabaseColumn = Field(description="Column that holds the row's key.")
    list_id: DatabaseColumn = "list_id"
    tenant: DatabaseColumn | None = None
    lists: ListTable


class SegmentTable(ListTable):
    """The table of stored filters, which requests name by id."""

    filter: DatabaseColumn = Field(default="filter", description="JSON, the same shape as a request's filters.")
    query_dsl: DatabaseColumn | None = None


class CustomFieldTable(_Declaration):
    """The table of the organizations' own fields; one JSON column of the row holds their values."""

    column: Name = Field(description="The JSON column: an object of field names and values.")
    table: DatabaseTable
    name: DatabaseColumn = "name"
    field_type: DatabaseColumn = Field(default="field_type", description="Holds Text, Number or Date.")
    tenant: DatabaseColumn


@dataclass(frozen=True)
class CustomField:
    """A field that an organization defined, in a JSON column."""

    column: Column
    key: str
    value_type: ColumnType
    """``text``, ``decimal`` or ``timestamp``: the type in filters. Files hold the value as it is stored."""
    type: ClassVar[ColumnType] = ColumnType.TEXT
    """The type in staged rows, whatever the type in filters."""

    @property
    def name(self) -> str:
        """Its name in staged rows; the names of columns have no dot."""
        return f"{self.column.name}.{self.key}"

    @property
    def source(self) -> str:
        """The name in messages about wrong data."""
        return f"{self.column.source}.{self.key}"


Selected = Column | CustomField | ChildList
"""What can be read for a row."""


class Layout(_Declaration):
    """A named set of columns in a fixed order, in the form of another system.

    A column's ``headers`` hold its name in the layout. "Tables" are csv and xlsx.
    """

    description: str = ""
    columns: tuple[Name, ...] = Field(min_length=1)
    header_case: Literal["as_is", "upper"] = Field(
        default="as_is", description="Case of headers in tables where a column declares none; json keys stay."
    )
    expand_custom_fields: bool = Field(
        default=False, description="In tables, add a column for each of the organization's custom fields."
    )
    arrays: Literal["json", "comma_separated"] = Field(
        default="json", description="In tables, how a JSON array of texts is written."
    )
    array_columns: tuple[Name, ...] = Field(default=(), description="The columns that `arrays` applies to.")
    timestamps: Literal["microseconds", "seconds"] = Field(
        default="microseconds", description="`seconds`: 2026-03-08T12:00:00Z, the fraction cut off."
    )
    csv_quoting: Literal["necessary", "non_empty"] = Field(
        default="necessary", description="`non_empty`: quote every value except an empty one."
    )
    file_name: NameStyle = Field(default="descriptive", description="`uuid`: only the request's uid and the extension.")
    gzip_suffix: Literal["gz", "gzip"] = Field(default="gz", description="Extension of gzipped files.")
    content_encoded: tuple[Literal["csv", "json", "ndjson"], ...] = Field(
        default=(),
        description="Formats whose gzip is declared as `Content-Encoding`: HTTP clients unpack it by themselves.",
    )


class LayoutColumn(NamedTuple):
    """A column of a layout, with its header there."""

    column: Column
    header: str


class Dataset(_Declaration):
    """A table or view that can be exported."""

    # What hangs together in it is checked by catalog.checks, when it is loaded.
    name: Name
    title: Annotated[Title, BeforeValidator(_title, json_schema_input_type=str | Title)]
    description: str = ""
    table: DatabaseTable
    tenant: DatabaseColumn = Field(description="Column that holds the organization; every query selects by it.")
    tenant_type: IdentityType = ColumnType.TEXT
    key: Name = Field(description="Unique column without nulls; exports are ordered by it.")
    created_at: Name | None = Field(default=None, description="Column that start_date and end_date apply to.")
    columns: tuple[Column, ...] = Field(min_length=1)
    children: tuple[ChildList, ...] = ()
    lists: MembershipTable | None = None
    segments: SegmentTable | None = None
    custom_fields: CustomFieldTable | None = None
    layouts: dict[Name, Layout] = Field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """SHA-256 (hex) of the declaration: equal declarations have equal versions.

        Defaults are left out, so that a new optional field of the model changes no version.
        """
        return canonical_hash(self.model_dump(mode="json", exclude_defaults=True))

    @cached_property
    def key_column(self) -> Column:
        """The unique column that orders every export."""
        return self._by_name[self.key]

    @cached_property
    def created_at_column(self) -> Column | None:
        """The column that date ranges apply to, if there is one."""
        return self._by_name[self.created_at] if self.created_at else None

    def column(self, name: str) -> Column | None:
        """The column with this name or alias, in snake_case or camelCase; None if there is none."""
        return self._by_name.get(name)

    def child(self, name: str) -> ChildList | None:
        """The child list with this name, in snake_case or camelCase; None if there is none."""
        return next((child for child in self.children if name in spellings(child.name)), None)

    def custom_field(self, key: str, value_type: ColumnType) -> CustomField:
        """A custom field of a dataset that declares ``custom_fields``."""
        if self.custom_fields is None:
            raise ValueError(f"dataset {self.name} declares no custom fields")
        return CustomField(self._by_name[self.custom_fields.column], key, value_type)

    def layout(self, name: str = DEFAULT_LAYOUT, *, table: bool = True) -> tuple[LayoutColumn, ...] | None:
        """The columns of a layout in order, with their headers; None if the layout does not exist.

        ``table`` says that the format is csv or xlsx, where headers may be in upper case.
        """
        if name == DEFAULT_LAYOUT:
            chosen, upper = tuple(column for column in self.columns if column.exported), False
        elif (layout := self.layouts.get(name)) is not None:
            chosen = tuple(self._by_name[column] for column in layout.columns)
            upper = table and layout.header_case == "upper"
        else:
            return None
        return tuple(
            LayoutColumn(column, column.headers.get(name) or (column.name.upper() if upper else column.name))
            for column in chosen
        )

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {
            spelling: column
            for column in self.columns
            for name in (column.name, *column.aliases)
            for spelling in spellings(name)
        }


def canonical_hash(value: Any) -> str:
    """SHA-256 (hex) of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
