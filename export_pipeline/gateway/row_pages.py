"""A page of rows as JSON objects, for list endpoints."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import ChildList, Column
from export_pipeline.catalog.types import FilterOperator, OutputColumn
from export_pipeline.filters.tree import AllOf, AnyOf, Comparison
from export_pipeline.formats import open_format
from export_pipeline.formats.base import NO_CEILING, FormatOptions, TimestampPrecision
from export_pipeline.gateway.auth import organization_of
from export_pipeline.gateway.services import Services
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RequestInput
from export_pipeline.requests.validation.request import Preflight, preflight
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source


def selection_of(services: Services, key: ApiKey, **columns: Any) -> tuple[Selection, Preflight]:
    """What a request with these columns would export, to be read page by page; it must expand no custom fields."""
    organization = organization_of(services, key)
    request = RequestInput(organization_id=key.organization_id, format="ndjson", recipient_emails=[], **columns)
    checked = preflight(request, services.catalog, organization)
    dataset = checked.dataset
    selectable: tuple[Column | ChildList, ...] = (*dataset.columns, *dataset.children)
    by_name = {one.name: one for one in selectable}
    selection = Selection(
        dataset=dataset,
        organization_id=key.organization_id,
        columns=tuple(by_name[column.name] for column in checked.columns),
        filters=checked.filters,
        created_from=checked.created_from,
        created_before=checked.created_before,
    )
    return selection, checked


def read_page(
    source: Source,
    selection: Selection,
    *,
    limit: int,
    after: str | int | None = None,
    before: str | int | None = None,
    newest_first: bool = False,
    headers: Sequence[str] | None = None,
    timestamps: TimestampPrecision = "microseconds",
) -> list[dict[str, Any]]:
    """Read at most ``limit`` rows of a selection in the order of the key, or in descending order (``newest_first``).

    Only rows whose key is greater than ``after`` and smaller than ``before``. ``headers`` are the objects' keys, in the
    order of the columns; None: the columns' names.
    """
    key = selection.dataset.key_column
    bounds = [
        Comparison(key, operator, value)
        for operator, value in ((FilterOperator.GT, after), (FilterOperator.LT, before))
        if value is not None
    ]
    bounded = replace(selection, filters=AllOf((*selection.filters.conditions, *bounds)))
    if any(isinstance(column, ChildList) for column in selection.columns):
        bounded = _of_keys(source, bounded, limit, newest_first)
    return _read(source, bounded, limit, newest_first, headers, timestamps)


def _of_keys(source: Source, selection: Selection, limit: int, newest_first: bool) -> Selection:
    """The page by its keys: child lists are then read only for its rows, not for every row of the tenant."""
    key = selection.dataset.key_column
    rows = _read(source, replace(selection, columns=(key,)), limit, newest_first, ["key"], "microseconds")
    wanted = Comparison(key, FilterOperator.IN, tuple(row["key"] for row in rows)) if rows else AnyOf(())
    return replace(selection, filters=AllOf((wanted,)))


def _read(
    source: Source,
    selection: Selection,
    limit: int,
    newest_first: bool,
    headers: Sequence[str] | None,
    timestamps: TimestampPrecision,
) -> list[dict[str, Any]]:
    names = headers or [column.name for column in selection.columns]
    options = FormatOptions(
        columns=tuple(
            OutputColumn(column.name, name, column.type) for column, name in zip(selection.columns, names, strict=True)
        ),
        max_bytes=NO_CEILING,
        timestamps=timestamps,
    )
    written = open_format("ndjson", options)
    sink = io.BytesIO()
    file = written.open(sink)
    query = build_query(selection, source.backend, limit=limit, last=newest_first)
    # Count only the page: counting every row of a large tenant would cost more than the page itself.
    counted = replace(query, count=sa.select(sa.func.count()).select_from(query.rows.subquery()))
    with open_snapshot(source, counted) as snapshot:
        for batch in snapshot.batches:
            if batch.num_rows:
                file.write(written.encode(batch, Counter()), 0)
    file.close()
    return [json.loads(line, parse_float=_number) for line in sink.getvalue().split(b"\n") if line]


def _number(digits: str) -> float | Decimal:
    """A double where it holds all digits, so that answers hold JSON numbers; otherwise a decimal."""
    exact, double = Decimal(digits), float(digits)
    return double if Decimal(repr(double)) == exact else exact
