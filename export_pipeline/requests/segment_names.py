"""The columns that a segment query may name, and what it is told where it names or does something else.

What belongs here: SendGrid's contact columns, the organization's custom fields, the refusal of a query.
What does not: the query's form (``segment_query``), its conditions (``segment_predicate``).

Source: SendGrid, Marketing Campaigns V2 Segmentation Query Reference, ``contact_data``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from export_pipeline.catalog.model import Column, CustomField, Dataset
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.wording import shown

ArrayName = Literal["list_ids", "email_domains"]
"""Arrays that no column holds: what they hold follows from other tables and columns."""

_ADDRESSES = "alternate_emails"
_COMPUTED: tuple[ArrayName, ...] = ("list_ids", "email_domains")
_COLUMNS = (
    "contact_id",
    "email",
    "phone_number_id",
    "external_id",
    "anonymous_id",
    "first_name",
    "last_name",
    _ADDRESSES,
    "address_line_1",
    "address_line_2",
    "city",
    "state_province_region",
    "postal_code",
    "country",
    "created_at",
    "updated_at",
    "phone_number",
    "whatsapp",
    "line",
    "facebook",
    "unique_name",
)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MOST_SHOWN = 60


def refused(what: str) -> ExportFailure:
    """A query that cannot be run; ``what`` goes on from "its query" and holds none of the query's values."""
    return ExportFailure(FailureCode.INVALID_SEGMENT, f"its query {what}.", field="segment_ids")


class Names:
    """What a name in a query stands for, whatever its case."""

    def __init__(self, dataset: Dataset, custom_fields: Sequence[CustomField]) -> None:
        self.dataset = dataset
        self._columns = {
            name: column
            for name in _COLUMNS
            if (column := dataset.column(name)) is not None
            and column.operators
            and (column.type is ColumnType.JSON) == (name == _ADDRESSES)
        }
        self._custom: dict[str, CustomField] = {}
        for field in custom_fields:
            self._custom.setdefault(field.key.lower(), field)

    def find(self, name: str) -> Column | CustomField | ArrayName:
        """The column, custom field or array.

        Raises:
            ExportFailure: ``invalid_segment``, with the names that there are.
        """
        lower = name.lower()
        if lower in self._columns:
            return self._columns[lower]
        if lower in _COMPUTED and lower in self._computed:
            return next(computed for computed in _COMPUTED if computed == lower)
        if lower in self._custom:
            return self._custom[lower]
        known = [*self._columns, *self._computed, *(field.key for field in self._custom.values())]
        listed = ", ".join(known[:_MOST_SHOWN]) + (", …" if len(known) > _MOST_SHOWN else "")
        if not _PLAIN_NAME.fullmatch(name):
            # It may well be an address: text in double quotes, which SQL takes for a name.
            raise refused(f"has a name in double quotes that is no column; put texts in single quotes. Known: {listed}")
        raise refused(f"names column {shown(name, quoted=False)}; known: {listed}")

    @property
    def email(self) -> Column:
        """The column of the row's address, where ``email_domains`` is known."""
        return self._columns["email"]

    @property
    def addresses(self) -> Column | None:
        """The array of the row's further addresses, if there is one."""
        return self._columns.get(_ADDRESSES)

    @property
    def _computed(self) -> tuple[ArrayName, ...]:
        there = {"list_ids": self.dataset.lists is not None, "email_domains": "email" in self._columns}
        return tuple(name for name in _COMPUTED if there[name])
